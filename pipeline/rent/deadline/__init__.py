"""Meet a deadline: spot machines while there is time for one more loss, on demand otherwise."""
