"""Preloads in the database."""
