"""Two workers that have the model in parts: a whole run, and one that is killed."""

import math

import pytest

from pion.formats.load import load_decoder
from pipeline.state.head import REFERENCE
from tests.runs.test_ray import workers_of
from tests.support.preference_runs import killed_in_the_pass, prefer_job
from tests.support.whole_runs import (
    ends_with,
    final_weights,
    finish,
    head_of,
    losses,
    rows_trained,
    start,
    wait_for,
    write_job,
)

JOB = {
    "log__every": 1,
    "checkpoint__every_steps": 4,
    "hardware__workers": 2,
    "hardware__fsdp": True,
    "hardware__deterministic": True,
    "evaluate__prompts": ["the cat"],
}


WHOLE = {"model.safetensors", "optimizer.safetensors"}


def files_in(folder):
    """Return the names of the large files of the newest checkpoint."""
    checkpoint = folder / "runs" / "tiny" / head_of(folder).checkpoints[0].key
    return {path.name for path in checkpoint.glob("*.safetensors")}


@pytest.mark.soak
def test_a_sharded_run_that_is_killed_ends_with_the_same_weights(tmp_path):
    """First one worker is killed, then the whole run."""
    folders = [tmp_path / "unbroken", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    unbroken, killed = (
        write_job(folder, **JOB, publish={"to": str(folder / "published")}) for folder in folders
    )
    output = ends_with(0, start(unbroken))
    assert "the cat" in output
    assert files_in(folders[0]) == WHOLE

    process = start(killed)
    wait_for(process, "pretrain step 10/")
    workers_of(process.pid, folders[1])[-1].kill()
    wait_for(process, "pretrain step 15/")
    process.kill()
    output = ends_with(0, start(killed))
    assert "continues after step" in output
    assert final_weights(folders[1]) == final_weights(folders[0])
    assert losses(folders[1], "sft") == losses(folders[0], "sft")
    assert load_decoder(folders[1] / "published").config.d_model == 32


@pytest.mark.soak
def test_a_run_hops_from_one_process_to_a_sharded_model_and_back(tmp_path, whole):
    """Two workers continue from the files of a process alone, and it continues from theirs."""
    changes = {"sft": None, "hardware__dtype": "float32", "pretrain__lr": 1e-3}
    unbroken = whole(**changes)
    job = write_job(tmp_path, **changes)
    ends_with(4, start(job, "pretrain.pause_at=7"))
    workers = ("hardware.workers=2", "hardware.fsdp=true")
    output = ends_with(4, start(job, "pretrain.pause_at=13", *workers))
    assert "sharded no → yes" in output
    assert files_in(tmp_path) == WHOLE
    output = finish(job)
    assert "sharded yes → no" in output
    assert rows_trained(tmp_path) == rows_trained(unbroken)
    assert losses(tmp_path) == pytest.approx(losses(unbroken), rel=1e-4)


# ---------------------------------------------------------------- preferences


WORKERS = {
    "checkpoint__every_steps": 1,
    "log__every": 1,
    "hardware__workers": 2,
    "hardware__deterministic": True,
    "hardware__dtype": "float32",
    "prefer__steps": 30,
}
SHARDED = {**WORKERS, "hardware__fsdp": True}
CASES = {
    "dpo": {},
    "lora": {"prefer__lora": {"rank": 4, "base_dtype": "bfloat16"}},
}
# Then the gradients of both answers have cancelled each other, and Adam has made their rounding as
# large as all else: one process and two that share it are as far apart.
CLOSE_STEPS = 2


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES)
def test_kills_in_the_pass_and_in_the_stage_change_no_bit(tmp_path, case):
    folders = [tmp_path / name for name in ("unbroken", "killed", "not_sharded")]
    for folder in folders:
        folder.mkdir()
    unbroken, killed, not_sharded = folders
    output = finish(prefer_job(unbroken, **SHARDED, **CASES[case]))
    assert "evaluate: prefer model on held-out preferences" in output
    job = prefer_job(killed, **SHARDED, **CASES[case])
    killed_in_the_pass(killed, job, 1)  # before the first chunk
    killed_in_the_pass(killed, job, 3)  # after that of the first split
    process = start(job)
    wait_for(process, ": saved")  # by prefer: the other stages have ended
    process.kill()
    assert "prefer: starts (continues after step" in finish(job)
    assert final_weights(killed) == final_weights(unbroken)
    assert rows_trained(killed, "prefer") == rows_trained(unbroken, "prefer")
    assert (
        head_of(killed).data[REFERENCE].split("/")[1]
        == (head_of(unbroken).data[REFERENCE].split("/")[1])
    )

    finish(prefer_job(not_sharded, **WORKERS, **CASES[case], hardware__fsdp=False))
    found, expected = (losses(folder, "prefer") for folder in (unbroken, not_sharded))
    assert found[0] == pytest.approx(math.log(2), abs=1e-5)  # the model is its own reference
    assert found[:CLOSE_STEPS] == pytest.approx(expected[:CLOSE_STEPS], abs=1e-5)
