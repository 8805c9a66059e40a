"""The storage driver and the snapshotter: claims, volumes, snapshots and their classes."""
