"""Creates, watches, labels and removes VMs."""
