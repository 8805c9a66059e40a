"""The client commands. They use the service only over HTTP, as any other client does."""
