"""Writing preloads."""
