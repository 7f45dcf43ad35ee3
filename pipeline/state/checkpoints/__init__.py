"""A checkpoint's way: snapshot, upload, verify, restore, delete."""
