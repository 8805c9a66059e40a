"""kube-scheduler: which node a pod is bound to, and why none fits."""
