"""All SQL. Functions take an open transaction and never commit: use cases and worker steps do."""
