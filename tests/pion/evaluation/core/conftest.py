"""The made-up bundle, and answers to all its items."""

import pytest

from pion.evaluation.core.bundle import read_bundle
from tests.support.core_bundle import write_bundle


@pytest.fixture(scope="session")
def made_up_folder(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="session")
def made_up(made_up_folder):
    return read_bundle(made_up_folder)
