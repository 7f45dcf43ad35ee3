"""The commands of other packages that the documents name start, as installed here."""

import sys
from pathlib import Path

import pytest

from tests.support.waiting import run_to_end


# The test below starts `hf` each time.
@pytest.mark.soak
@pytest.mark.parametrize("command", ["runpod", "hf", "sky"])
def test_it_starts(command):
    path = Path(sys.prefix, "bin", command)
    done = run_to_end([path, "--help"])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_hub_repositories_are_made_as_the_documents_say():
    options = [Path(sys.prefix, "bin", "hf"), "repos", "create", "--help"]
    done = run_to_end(options)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "--private" in done.stdout
