"""The embedded default: a Postgres from a wheel and the dev cluster, both started by us and kept in one data folder."""
