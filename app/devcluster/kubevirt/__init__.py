"""What KubeVirt's controllers and validators do."""
