"""Start paths and their measured times over HTTP."""
