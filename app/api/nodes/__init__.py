"""Nodes, and whether VMs fit on them, over HTTP."""
