"""VMs over HTTP."""
