"""CDI: its controllers and webhooks."""
