"""Makes sure that the objects in the cluster are this database's, before anything else is done to them."""
