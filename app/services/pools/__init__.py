"""Writing pools."""
