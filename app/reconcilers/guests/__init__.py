"""Identities of VMs whose guests have a channel to the service."""
