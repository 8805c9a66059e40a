"""The embedded parts of `up` and `demo`: a Postgres from a wheel and the dev cluster, both in one data folder."""
