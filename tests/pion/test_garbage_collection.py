import gc
import sys

import pytest

from pion.garbage_collection import importing
from tests.support.waiting import run_to_end


def test_what_was_imported_is_never_looked_through_again():
    with importing():
        assert not gc.isenabled()
        imported = [[]]
    assert gc.isenabled()
    assert not any(one is imported for one in gc.get_objects())


def test_triton_does_not_complain_at_the_end():
    pytest.importorskip("triton")
    code = "from pion.garbage_collection import importing\nwith importing(): import triton"
    assert run_to_end([sys.executable, "-c", code], check=True).stderr == ""
