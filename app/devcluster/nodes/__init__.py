"""Nodes, and what runs on them: pods, images, guests."""
