"""Read how much memory this process has in use (Linux)."""

from pathlib import Path


def resident(field: str) -> int:
    """Return a memory field of this process in bytes: VmRSS (now) or VmHWM (at its highest)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
