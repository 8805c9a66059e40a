"""Pools in the database."""
