"""Rentals as SkyPilot's managed jobs: launch, watch, hop, and every machine's end."""
