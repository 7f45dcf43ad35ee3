"""The old name of on_machine/boot_check.py, for YAMLs that people wrote."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parent / "on_machine" / "boot_check.py"), run_name="__main__")
