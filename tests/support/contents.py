"""Bytes to store, and their hash."""

from __future__ import annotations

import hashlib


def content(size: int) -> bytes:
    return hashlib.shake_128(b"content").digest(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
