from collections.abc import Callable

import pytest

from tests.cuda_rehearsal.environment import (
    compile_shim,
    pinned_torch,
    run_pretended,
    this_machine,
    why_impossible,
)
from tests.cuda_rehearsal.report import Report, read_reports


@pytest.fixture(scope="session")
def run_on_pretended_card(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`run_on_pretended_card(module, *arguments)`: what this program prints."""
    reason = why_impossible(this_machine(), pinned_torch())
    if reason is not None:
        pytest.skip(reason)
    shim = compile_shim(tmp_path_factory.mktemp("cuda shim"))
    return lambda module, *arguments: run_pretended(module, shim, *arguments)


@pytest.fixture(scope="session")
def on_pretended_card(
    run_on_pretended_card: Callable[..., str],
) -> Callable[..., dict[str, Report]]:
    """`on_pretended_card(module, *arguments)`: the reports of this program on a pretended card."""
    return lambda *program: read_reports(run_on_pretended_card(*program))
