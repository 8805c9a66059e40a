"""What guests ask of the service through their channel."""
