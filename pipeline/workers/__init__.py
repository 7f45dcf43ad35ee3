"""Ray's processes: start them, talk to them, end them."""
