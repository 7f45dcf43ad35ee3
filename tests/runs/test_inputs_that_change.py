"""What a run was started with is bound to the run, whatever becomes of the files that the job names.

docs/state.md has the rule for each kind of input.
"""

import json

import pytest

from tests.runs.test_reinforce import OWN, reinforce_job
from tests.support.meddling import Meddling
from tests.support.whole_runs import ends_with, finish, head_of, start

OTHER = "def letters(text):\n    return 700 + len(text)\n"


def replacing_at_the_start_of(folder, stage, files):
    """Let the next run replace files when it begins to train or to do a stage."""
    meddling = Meddling(folder)
    (folder / "replace.json").write_text(json.dumps(files))
    target = "pipeline.run.advance:Advance._stage_after_training"
    take = "self, stage"
    if stage not in ("evaluate", "publish"):
        target, take = "pipeline.training.loop:train_stage", "context, claim, stage, start"
    meddling.wrap(
        target,
        f"""
        def wrapper(original, {take}):
            if stage == {stage!r}:
                import json
                for name, text in json.loads((HERE / "replace.json").read_text()).items():
                    (HERE / name).write_text(text)
            return original({take})
        """,
    )
    return meddling


@pytest.mark.slow
def test_a_reward_that_is_replaced_while_the_run_trains_judges_nothing(tmp_path):
    job = reinforce_job(tmp_path, reinforce__rewards=[OWN])
    meddling = replacing_at_the_start_of(tmp_path, "reinforce", {"rewards.py": OTHER})
    ends_with(0, start(job, env=meddling.environment()))
    meddling.check()
    result = head_of(tmp_path).stages["evaluate"].result["reinforce"]
    assert result["reward"] < 2
    (tmp_path / "rewards.py").unlink()
    assert "evaluate: done" in finish(job)
    (tmp_path / "rewards.py").write_text(OTHER)
    refused = ends_with(2, start(job))
    assert "reinforce.rewards.0.path.sha256" in refused
    assert "--redo reinforce" in refused
