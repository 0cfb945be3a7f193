"""The same training command on several machines, by schedulers that exist."""
