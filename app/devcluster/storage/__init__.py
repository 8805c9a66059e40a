"""What the storage driver and the snapshotter do."""
