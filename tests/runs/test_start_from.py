"""Training that starts from an existing model."""

import pytest
from safetensors.torch import load_file

from pipeline.cli import main
from tests.support.whole_runs import finish, head_of, write_job


def first_weights(folder):
    """Return the weights after the last step that these jobs train."""
    entry = next(e for e in head_of(folder).checkpoints if e.stage == "pretrain")
    return load_file(folder / "runs/tiny" / entry.key / "model.safetensors")


@pytest.fixture
def pretrained(whole):
    return whole(sft=None)


def test_a_run_continues_another_model_with_a_fresh_schedule(tmp_path, pretrained):
    model = {"from": str(pretrained / "runs" / "tiny")}
    steps = {"pretrain__steps": 1, "pretrain__warmup_steps": 0}
    rates = {"pretrain__lr": 1e-6, "pretrain__min_lr": 1e-6}
    job = write_job(tmp_path, model=model, tokenizer=None, sft=None, **steps, **rates)
    assert "starts from" in finish(job)
    begun, ended = first_weights(pretrained), first_weights(tmp_path)
    assert 0 < max(float((begun[name] - ended[name]).abs().max()) for name in begun) < 1e-5


def test_a_fork_does_not_continue_with_other_parts(tmp_path, pretrained, capsys):
    store = tmp_path / "runs"
    assert main(["fork", str(pretrained / "runs" / "tiny"), f"{store}/fork"]) == 0
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    job = write_job(tmp_path, model__experts={"n": 4, "d_shared": 16}, sft=None, name="fork")
    assert main(["run", str(job)]) == 2
    error = capsys.readouterr().err
    assert "model.experts.n: (not set) → 4" in error
    assert "Traceback" not in error
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
