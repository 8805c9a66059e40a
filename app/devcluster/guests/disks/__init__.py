"""Disks as qcow2 files: made, imported, copied as overlays, and frozen into read-only layers. Knows nothing of Kubernetes."""
