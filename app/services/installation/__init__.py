"""What an operator decides about the VMs in the cluster."""
