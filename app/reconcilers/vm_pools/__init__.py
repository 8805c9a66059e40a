"""Keeps VirtualMachinePools as their pools want them."""
