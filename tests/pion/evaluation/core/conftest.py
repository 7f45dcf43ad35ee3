"""The made-up bundle, and answers to all its items."""

from pathlib import Path

import pytest

from pion.evaluation.core.bundle import Bundle, read_bundle
from tests.support.core_bundle import write_bundle


@pytest.fixture(scope="session")
def made_up_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="session")
def made_up(made_up_folder: Path) -> Bundle:
    return read_bundle(made_up_folder)
