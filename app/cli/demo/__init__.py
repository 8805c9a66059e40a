"""`emberpool demo`: shows everything that the service does, once.

It starts what `up` starts, in a folder that it removes at the end, and then acts as a client: everything that it shows was requested
and measured over HTTP.
"""
