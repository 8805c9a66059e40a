"""Kubernetes-style manifests, as users write them, to requests for what the service has. Pure, and knows no HTTP."""
