"""Kubernetes-style manifests, as users write them, to wishes for what the service has. Pure, and knows no HTTP."""
