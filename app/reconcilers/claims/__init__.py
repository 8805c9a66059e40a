"""Claims in the background: expired leases, and failover to another path."""
