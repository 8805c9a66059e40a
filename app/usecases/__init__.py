"""One function a write: it opens the transaction, and calls the cluster only outside of one."""
