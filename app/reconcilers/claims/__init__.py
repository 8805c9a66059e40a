"""Claims in the background: leases that end, failover to another path."""
