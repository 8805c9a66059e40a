"""History in the background: rows of what has ended, deleted when they are too old."""
