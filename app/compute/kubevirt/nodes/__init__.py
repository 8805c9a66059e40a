"""Nodes as KubeVirt's cluster shows them."""
