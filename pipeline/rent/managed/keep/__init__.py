"""Keep a run on a rented machine, by its deadline if it has one."""
