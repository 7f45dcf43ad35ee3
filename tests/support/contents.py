"""Bytes to store, and their hash."""

import hashlib


def content(size):
    return hashlib.shake_128(b"content").digest(size)


def sha256(data):
    return hashlib.sha256(data).hexdigest()
