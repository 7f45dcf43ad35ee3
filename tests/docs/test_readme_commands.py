"""The commands of other packages that the README tells people to type start, as installed here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ("hf", "runpod", "sky")


@pytest.mark.parametrize("command", COMMANDS)
def test_it_starts(command: str) -> None:
    path = Path(sys.prefix, "bin", command)
    done = subprocess.run([path, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_hub_repositories_are_made_as_the_readme_says() -> None:
    options = [Path(sys.prefix, "bin", "hf"), "repos", "create", "--help"]
    done = subprocess.run(options, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--private" in done.stdout
