"""The installation, and what an operator decides about it."""
