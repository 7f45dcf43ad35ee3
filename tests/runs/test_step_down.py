"""A run whose GPU memory runs out, or whose compiler fails, continues by a smaller plan."""

import pytest

from tests.support.meddling import Meddling
from tests.support.whole_runs import (
    ends_with,
    events_of,
    final_weights,
    finish,
    head_of,
    rows_trained,
    start,
    write_job,
)

# Whether a micro-batch of more than two rows runs out of memory: on the second worker, if there
# are two. The other worker then waits for it.
OUT_OF_MEMORY = """
def wrapper(add, self, batch, *arguments, **options):
    import torch
    import torch.distributed as dist
    here = not dist.is_initialized() or dist.get_rank() == 1
    if here and len(batch.tokens) > {most} and self._shards is None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
    return add(self, batch, *arguments, **options)
"""


def small_memory(folder, most, inside="pipeline.cli"):
    meddling = Meddling(folder, inside=inside)
    meddling.wrap("pion.train.gradients:Gradients.add", OUT_OF_MEMORY.format(most=most))
    return meddling


def test_a_step_that_runs_out_of_memory_begins_again_with_half_the_micro_batch(tmp_path, whole):
    small = whole(sft=None, hardware__micro_batch=2)
    meddling = small_memory(tmp_path, most=2)
    job = write_job(tmp_path, sft=None)
    output = ends_with(0, start(job, env=meddling.environment()))
    meddling.check()
    assert "the GPU's memory ran out. This step begins again, with micro_batch 4 → 2" in output
    assert final_weights(tmp_path) == final_weights(small)
    (hop,) = events_of(tmp_path, "hop")
    what, consequence = hop["receipt"]
    assert what.startswith("pretrain after step 0: the GPU's memory ran out.")
    assert consequence.startswith("not bit-identical")


def test_a_row_that_does_not_fit_ends_the_run_with_what_to_do(tmp_path):
    meddling = small_memory(tmp_path, most=0)
    output = ends_with(2, start(write_job(tmp_path, sft=None), env=meddling.environment()))
    assert "micro_batch 4 → 2" in output
    assert "micro_batch 2 → 1" in output
    assert "recompute false → true" in output
    assert "Use a larger GPU, a smaller model or shorter rows (seq_len)" in output
    assert "Traceback" not in output
    assert finish(tmp_path / "tiny.yaml")


@pytest.mark.soak
def test_several_workers_start_again_with_the_smaller_plan(tmp_path):
    meddling = small_memory(tmp_path, most=1, inside="ray")
    job = write_job(tmp_path, sft=None, hardware__workers=2, log__every=1)
    output = ends_with(0, start(job, env=meddling.environment()))
    meddling.check()
    assert "the GPU's memory ran out. Starting again from the last checkpoint" in output
    assert "with micro_batch 1" in output
    assert rows_trained(tmp_path) == [[4 * step, 4 * step + 4] for step in range(20)]
    assert head_of(tmp_path).owner is None


@pytest.mark.soak
@pytest.mark.parametrize("fsdp", ["auto", False])
def test_several_workers_divide_a_model_that_does_not_fit_whole_if_they_may(tmp_path, fsdp):
    meddling = small_memory(tmp_path, most=0, inside="ray")
    hardware = {"workers": 2, "fsdp": fsdp, "micro_batch": 1, "recompute": True}
    changes = {f"hardware__{name}": value for name, value in hardware.items()}
    job = write_job(tmp_path, sft=None, log__every=1, **changes)
    output = ends_with(0 if fsdp == "auto" else 2, start(job, env=meddling.environment()))
    meddling.check()
    divided = "Starting again from the last checkpoint with the model divided among the workers"
    assert (divided in output) == (fsdp == "auto")
    assert ("or set hardware.fsdp: true" in output) == (fsdp is False)
    if fsdp == "auto":
        assert rows_trained(tmp_path) == [[4 * step, 4 * step + 4] for step in range(20)]
