"""Generates what of the Python client is not written by hand. Run it with `make client`."""
