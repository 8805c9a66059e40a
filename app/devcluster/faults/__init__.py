"""Faults that a test orders: the book of active faults, and those that strike requests."""
