"""The Kubernetes API: objects, verbs, lists, watches, and how they are served."""
