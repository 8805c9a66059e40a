"""Claims of pools: the claim service, its batcher, queue and waiters."""
