"""All Kubernetes: the gateway's protocol, the KubeVirt client behind it, the manifests it sends, and the watch."""
