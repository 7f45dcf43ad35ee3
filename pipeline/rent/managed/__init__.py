"""Rentals as SkyPilot's managed jobs: launch, watch and move them, and end every machine."""
