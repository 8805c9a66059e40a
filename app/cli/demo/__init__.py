"""`emberpool demo`: everything the service does, once, before one pair of eyes.

It starts what `up` starts, in a folder that goes away with it, and is then a client like any other: all that it shows was
asked for and measured over HTTP.
"""
