"""Decisions as pure functions, and the shapes they take and give. No input or output happens here."""
