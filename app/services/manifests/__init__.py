"""Applying manifests."""
