"""Emberpool: warm KubeVirt VMs, ready before they are asked for."""
