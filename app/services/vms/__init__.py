"""Changing VMs that nobody has claimed."""
