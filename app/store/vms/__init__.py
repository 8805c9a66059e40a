"""VMs in the database."""
