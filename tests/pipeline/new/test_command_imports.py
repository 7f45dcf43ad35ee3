"""What `pion new` imports before it needs it."""

import subprocess
import sys

import pytest

HEAVY = {"sky", "ray", "transformers", "datasets", "pandas"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("pipeline.new.command", HEAVY | {"torch"}), ("pipeline.new.price", HEAVY)],
)
def test_what_takes_seconds_to_import_is_not(module, heavy):
    code = f"import sys, {module}; print(*sys.modules.keys() & {heavy})"
    assert not subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60).split()
