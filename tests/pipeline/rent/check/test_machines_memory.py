"""`pion check` names the GPUs that have enough memory, and refuses a job that none of them has."""

from __future__ import annotations

import pytest

from pion.config.model_config import ModelConfig
from pipeline.job.file import load_job
from pipeline.rent.check.machines import check_memory
from tests.paths import JOBS


def test_a_job_that_fits_everywhere_lists_the_smallest_gpus() -> None:
    (row,) = check_memory(load_job(JOBS / "tachyon-tiny.yaml"))
    assert row.ok
    assert row.words == "It fits on T4, RTXA4000, RTXA4500, A10, A10G, L4 …."


@pytest.mark.soak
def test_the_largest_gpu_that_is_too_small_is_named_with_what_it_lacks() -> None:
    (row,) = check_memory(load_job(JOBS / "tachyon-large.yaml"))
    assert row.ok
    assert row.words.startswith(
        "It fits on H200, H200-SXM, B200. RTXPRO6000-WK: the model does not fit"
    )
    assert "needs 113.2 GiB, and 85.4 of this machine's 94.9 GiB can be used" in row.words


def test_a_job_too_large_for_every_gpu_is_refused() -> None:
    larger = 2 * ModelConfig.preset("tachyon-large").n_layers
    (row,) = check_memory(load_job(JOBS / "tachyon-large.yaml", [f"model.n_layers={larger}"]))
    assert row.ok is False
    assert row.words.startswith("It fits on no GPU known here. B200: the model does not fit")
