"""What every reconciler is made of."""
