"""A found model is fitted to the job that starts from it, or refused."""

from pathlib import Path

import pytest

from pion.errors import BadInput
from pipeline.models.find import FoundModel
from pipeline.models.load import check_start


@pytest.mark.parametrize("stage", ["sft", "prefer"])
def test_an_adapter_is_refused_as_the_start_of_the_stage_that_would_adapt_it(stage):
    base = FoundModel(Path("base"), "export", "base", False, None)
    adapter = FoundModel(Path("added"), "checkpoint", "added", True, None, base)
    with pytest.raises(BadInput, match=rf"^{stage}\.init_from added: it is an adapter itself"):
        check_start(adapter, "added", lora_of=stage)
    check_start(base, "base", lora_of=stage)
