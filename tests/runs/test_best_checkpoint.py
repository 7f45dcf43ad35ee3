"""Runs that publish the checkpoint with the lowest held-out loss: `evaluate.checkpoint: best`."""

import pytest
from safetensors.torch import load_file

from pion.errors import PionError
from pipeline.cli import main
from pipeline.models.find import find_model
from pipeline.training.rank_zero import RankZero
from tests.runs.test_model_from import SFT, write_job
from tests.support.whole_runs import head_of

# So high a rate that the held-out loss goes up and down.
SETTINGS = {
    "sft": SFT | {"steps": 12, "lr": 1.0, "min_lr": 1.0, "warmup_steps": 0},
    "evaluate": {
        "every": 3,
        "rows": 4,
        "final_rows": 4,
        "continuations": 0,
        "prompts": [],
        "checkpoint": "best",
    },
}


def chosen(folder):
    return dict(head_of(folder).stages["evaluate"].result["checkpoint"])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run that nothing interrupted, published to `out`."""
    folder = tmp_path_factory.mktemp("unbroken")
    job = write_job(folder, publish={"to": str(folder / "out"), "even_if_worse": True}, **SETTINGS)
    assert main(["run", str(job)]) == 0
    return folder


def test_the_best_checkpoint_is_evaluated_published_and_what_the_runs_name_means(unbroken):
    head, best = head_of(unbroken), chosen(unbroken)
    losses = {e.step: e.metrics["held_out_loss"] for e in head.checkpoints}
    assert best["step"] < best["last_step"] == 12
    assert best["held_out_loss"] == min(losses.values()) == losses[best["step"]]
    assert head.stages["sft"].checkpoint == head.checkpoints[0].key  # later stages start there
    published = load_file(unbroken / "out" / "model.safetensors")
    steps = {}
    for step in losses:
        found = find_model(f"{unbroken}/runs/tiny@{step}")
        saved = load_file(found.folder / "model.safetensors")
        name = next(name for name in saved if saved[name].shape == (32, 32))
        steps[step] = any(saved[name].equal(weights) for weights in published.values())
    assert [step for step, same in steps.items() if same] == [best["step"]]
    assert f"sft, step {best['step']})" in find_model(f"{unbroken}/runs/tiny").label
    card = (unbroken / "out" / "README.md").read_text()
    assert f"The model is that of step {best['step']} of 12" in card
    assert f"{best['held_out_loss']:.4f}. After the last step it was" in card
    assert "The model is that of step" in (unbroken / "runs" / "tiny" / "report.html").read_text()


@pytest.mark.parametrize(
    "crash", [2, *(pytest.param(crash, marks=pytest.mark.soak) for crash in (1, 3, 4))]
)
def test_a_crash_between_a_save_and_its_loss_changes_no_choice(
    unbroken, tmp_path, crash, monkeypatch
):
    job, calls, record = write_job(tmp_path, **SETTINGS), [0], RankZero._record_loss

    def crashing(self, loss):
        calls[0] += 1
        if calls[0] == crash:
            raise PionError("the machine is gone")
        record(self, loss)

    monkeypatch.setattr(RankZero, "_record_loss", crashing)
    assert main(["run", str(job)]) == 1
    assert main(["run", str(job)]) == 0
    assert calls[0] == 4 + 1
    assert chosen(tmp_path) == chosen(unbroken)


def test_a_run_that_was_trained_without_it_is_not_guessed_at(tmp_path, capsys):
    changed = SETTINGS | {"evaluate": SETTINGS["evaluate"] | {"checkpoint": "last"}}
    job = write_job(tmp_path, **changed)
    assert main(["run", str(job)]) == 0
    assert "checkpoint" not in head_of(tmp_path).stages["evaluate"].result
    assert main(["run", str(job), "evaluate.checkpoint=best"]) == 2
    assert 'evaluate.checkpoint: "last" → "best"' in capsys.readouterr().err
    assert main(["run", str(job), "evaluate.checkpoint=best", "--redo", "evaluate"]) == 2
    assert "sft was trained without it" in capsys.readouterr().err
