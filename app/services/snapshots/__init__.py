"""Writing snapshots."""
