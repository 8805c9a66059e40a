"""Claims over HTTP: make, read, wait, renew, release."""
