"""The commands of other packages that the documents name start, as installed here."""

import sys
from pathlib import Path

import pytest

from tests.support.waiting import run_to_end


@pytest.mark.soak
@pytest.mark.parametrize("command", ["runpod", "sky"])
def test_it_starts(command):
    done = run_to_end([Path(sys.prefix, "bin", command), "--help"])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_hub_repositories_are_made_as_the_documents_say():
    done = run_to_end([Path(sys.prefix, "bin", "hf"), "repos", "create", "--help"])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "--private" in done.stdout
