"""What claims hand over to the guests of their VMs."""
