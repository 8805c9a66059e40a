"""The history over HTTP, as pages and as a stream."""
