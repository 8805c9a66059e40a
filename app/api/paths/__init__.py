"""What each start path costs here, over HTTP."""
