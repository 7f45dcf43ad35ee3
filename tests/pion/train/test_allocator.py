"""CUDA's allocator is told to let its segments grow, unless the user has said something."""

import sys

import pytest

from pion.train.allocator import EXPANDABLE, OLD_VARIABLE, VARIABLE, let_segments_grow
from tests.support.waiting import run_to_end


def test_segments_grow_where_the_user_has_said_nothing():
    environment = {"HOME": "/"}
    let_segments_grow(environment)
    assert environment == {"HOME": "/", VARIABLE: EXPANDABLE}


@pytest.mark.parametrize("name", [VARIABLE, OLD_VARIABLE])
@pytest.mark.parametrize("value", ["max_split_size_mb:64", ""])
def test_what_the_user_has_set_stays(name, value):
    environment = {name: value}
    let_segments_grow(environment)
    assert environment == {name: value}


def test_the_module_does_not_import_torch():
    # It is called before torch is imported.
    code = "import sys, pion.train.allocator; sys.exit('torch' in sys.modules)"
    assert run_to_end([sys.executable, "-c", code]).returncode == 0
