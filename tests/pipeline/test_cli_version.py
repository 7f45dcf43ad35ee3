"""`pion --version` names the commit that the running code comes from."""

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.paths import REPOSITORY
from tests.support.waiting import run_to_end

VERSION = f"pion {importlib.metadata.version('pion')}"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code without a git checkout, as in a wheel or on a rented machine."""
    for package in ("pion", "pipeline"):
        shutil.copytree(
            REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def version_of(folder: Path, **variables: str) -> str:
    names = ("PION_COMMIT", "PION_DIRTY")
    environment = {k: v for k, v in os.environ.items() if k not in names} | variables
    command = [sys.executable, "-m", "pipeline.cli", "--version"]
    done = run_to_end(command, cwd=folder, env=environment, check=True)
    return done.stdout


def git(folder: Path, *arguments: str) -> str:
    me = ["-c", "user.name=someone", "-c", "user.email=someone@example.com"]
    command = ["git", "-C", str(folder), *me, *arguments]
    return run_to_end(command, check=True).stdout


def test_code_outside_of_a_checkout_has_a_version_and_no_commit(copy: Path) -> None:
    assert version_of(copy) == f"{VERSION}\n"


def test_a_rented_machine_names_the_commit_that_it_was_launched_with(copy: Path) -> None:
    assert version_of(copy, PION_COMMIT="0123456789ab") == f"{VERSION} (0123456)\n"
    changed = version_of(copy, PION_COMMIT="0123456789ab", PION_DIRTY="77")
    assert changed == f"{VERSION} (0123456, changed since)\n"


def test_a_checkout_names_its_commit_and_whether_it_was_changed(copy: Path) -> None:
    (copy / ".gitignore").write_text("__pycache__\n")
    git(copy, "init", "-q")
    git(copy, "add", "-A")
    git(copy, "commit", "-qm", "All of it")
    commit = git(copy, "rev-parse", "HEAD")[:7]
    assert version_of(copy) == f"{VERSION} ({commit})\n"
    (copy / "pipeline" / "cli.py").open("a").write("# changed\n")
    assert version_of(copy) == f"{VERSION} ({commit}, changed since)\n"
