"""The quick way of `POST /v1/claim`: below ASGI where the request is a plain one."""
