"""From a template to the spec of a VirtualMachine, and what can be told from it."""
