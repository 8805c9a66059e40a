"""Steps within the caller's transaction that requests and reconcilers share. They call no cluster and commit nothing."""
