"""SkyPilot and RunPod: what they are asked, and the tasks that they get."""
