"""The life of a checkpoint: snapshot, upload, verify, restore, delete."""
