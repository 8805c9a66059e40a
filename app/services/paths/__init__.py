"""Claims that describe their VM."""
