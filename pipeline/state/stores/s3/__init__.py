"""Bytes in an S3 bucket."""
