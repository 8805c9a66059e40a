"""Everything in the background: each reconciler brings the cluster, or the rows, to what the rows say."""
