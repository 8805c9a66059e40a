"""The loops behind the service: plan, create, remove, label, observe, reap. Any number of replicas runs all of them."""
