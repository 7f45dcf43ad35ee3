"""The made-up bundle."""

import pytest

from tests.support.core_bundle import made_up_bundle


@pytest.fixture(scope="session")
def made_up(tmp_path_factory):
    return made_up_bundle(tmp_path_factory.mktemp("core"))
