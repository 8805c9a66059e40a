"""Takes snapshots and keeps them fresh."""
