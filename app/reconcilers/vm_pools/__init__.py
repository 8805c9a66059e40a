"""Keeps VirtualMachinePools as their pools want them, and assigns their VMs to rows."""
