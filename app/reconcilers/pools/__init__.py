"""Plans each pool."""
