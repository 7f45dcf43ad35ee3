"""Where `pion bench` keeps this user's results, and `pion plan` and `pion replay` find them."""

from __future__ import annotations

from pathlib import Path

from pipeline.machine.private import cache_folder, private_cache_folder

NAME = "bench"


def own_bench_folder() -> Path:
    """Return the folder for this user's results, made for this user alone. Raises BadInput."""
    return private_cache_folder(NAME)


def own_bench_files() -> list[Path]:
    """Return the files with this user's results."""
    return sorted((cache_folder() / NAME).glob("*.json"))
