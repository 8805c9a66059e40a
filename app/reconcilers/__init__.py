"""Everything in the background. Each reconciler brings the cluster, or the rows, to what the rows say should be."""
