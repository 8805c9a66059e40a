"""The compute protocol over KubeVirt. Nothing else in the service speaks Kubernetes."""
