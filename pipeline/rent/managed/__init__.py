"""Rented machines, as SkyPilot's managed jobs. The commands are the modules launch, watch, hop and
rentals. The folder look/ finds out what is, keep/ decides and acts, provider/ asks."""
