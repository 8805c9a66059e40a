"""Translates Kubernetes-style manifests, as users write them, into requests of this service's own API. Pure; no HTTP."""
