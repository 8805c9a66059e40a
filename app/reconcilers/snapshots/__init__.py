"""Takes snapshots, keeps them current, and removes what no row wants."""
