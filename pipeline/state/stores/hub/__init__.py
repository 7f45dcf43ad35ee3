"""Bytes in a Hugging Face Hub repository."""
