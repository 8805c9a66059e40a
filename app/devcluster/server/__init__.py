"""The HTTP side of the dev cluster: the Kubernetes API, and the cluster's own API for orders."""
