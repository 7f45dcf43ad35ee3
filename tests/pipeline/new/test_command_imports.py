"""What `pion new` imports before it needs it."""

import subprocess
import sys

import pytest

HEAVY = {"sky", "ray", "transformers", "datasets", "pandas"}


@pytest.mark.parametrize("of", [("command", HEAVY | {"torch"}), ("price", HEAVY)])
def test_what_takes_seconds_to_import_is_not(of):
    module, heavy = f"pipeline.new.{of[0]}", of[1]
    code = f"import sys, {module}; print(*sys.modules.keys() & {heavy})"
    assert not subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60).split()
