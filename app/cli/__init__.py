"""The command `emberpool`: the commands that serve, and the client commands."""
