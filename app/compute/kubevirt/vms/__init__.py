"""VMs as KubeVirt's cluster shows them."""
