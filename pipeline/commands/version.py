"""`pion --version`: the installed version, and the commit that the running code comes from."""

from __future__ import annotations

import importlib.metadata

from pipeline.state.owner import code_version


def version_line() -> str:
    """Return `pion 0.1.0 (c28abf5, changed since)`; without a known commit, only the version."""
    version = f"pion {importlib.metadata.version('pion')}"
    code = code_version()
    if code.commit is None:
        return version
    changed = ", changed since" if code.dirty else ""
    return f"{version} ({code.commit[:7]}{changed})"
