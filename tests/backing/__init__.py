"""What a pool promises, whatever stands behind it in the cluster; and VirtualMachinePools that others lay hands on."""
