"""Facts about the machine this process runs on."""
