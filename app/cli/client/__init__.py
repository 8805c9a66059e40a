"""The commands for people at a terminal: clients of the service like any other, over HTTP alone."""
