"""Claims over HTTP: made, read, waited for, renewed, released."""
