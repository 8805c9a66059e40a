"""Claims in the database."""
