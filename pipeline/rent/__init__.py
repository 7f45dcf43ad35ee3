"""Everything that involves a rented machine, from its price to the proof that it is gone."""
