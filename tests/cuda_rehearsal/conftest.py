from collections.abc import Callable
from functools import partial

import pytest

from tests.cuda_rehearsal.environment import (
    compile_shim,
    pinned_torch,
    run_pretended,
    this_machine,
    why_impossible,
)
from tests.cuda_rehearsal.report import Report


@pytest.fixture(scope="session")
def on_pretended_card(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], dict[str, Report]]:
    """`on_pretended_card(module)`: the reports of this program on a pretended card."""
    reason = why_impossible(this_machine(), pinned_torch())
    if reason is not None:
        pytest.skip(reason)
    return partial(run_pretended, shim=compile_shim(tmp_path_factory.mktemp("cuda shim")))
