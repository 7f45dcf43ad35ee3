"""Programs that stand in for Python."""

import sys
from pathlib import Path


def python_that(does: str, folder: Path) -> str:
    """Write an interpreter that runs `does` instead of lm-eval."""
    script = folder / "python"
    script.write_text(f"#!{sys.executable}\nimport os, signal, sys\n{does}\n")
    script.chmod(0o755)
    return str(script)
