"""What the service may ask of a cluster: a protocol and its types, with no Kubernetes in them."""
