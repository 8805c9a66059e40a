"""Checks over HTTP whether VMs fit on the nodes."""
