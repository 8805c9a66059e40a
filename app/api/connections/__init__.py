"""HTTP connections and their bounds: what one client, and all clients together, may take of a process before a request is read."""
