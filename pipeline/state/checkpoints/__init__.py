"""The path of a checkpoint: snapshot, upload, verify, restore, delete."""
