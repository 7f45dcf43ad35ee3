"""What a run was started with is bound to it, whatever becomes of the files that the job names."""

import json

import pytest

from tests.runs.test_reinforce import FUNCTION, OWN, reinforce_job
from tests.support.meddling import Meddling
from tests.support.whole_runs import ends_with, finish, head_of, start

OTHER = "def letters(text):\n    return 700 + len(text)\n"
QUESTION = '{"context": "a", "choices": [" b", " c"], "answer": 0}\n'
# What a run replaces when it begins with `reinforce`, after the stages before it.
REPLACED = {
    "rewards.py": OTHER,
    "pack.jsonl": QUESTION * 5,
    "talks.jsonl": "none",
    "questions.jsonl": "none",
    "text/all.txt": "none",
}


@pytest.mark.slow
def test_a_run_goes_on_with_its_first_inputs_and_names_those_that_changed(tmp_path):
    (tmp_path / "pack.jsonl").write_text(QUESTION * 2)
    job = reinforce_job(tmp_path, reinforce__rewards=[OWN], evaluate__packs=["pack.jsonl"])
    (tmp_path / "replaced.json").write_text(json.dumps(REPLACED))
    meddling = Meddling(tmp_path)
    meddling.wrap(
        "pipeline.training.loop:train_stage",
        """
        def wrapper(train_stage, context, claim, stage, start):
            import json
            if stage == "reinforce":
                for name, text in json.loads((HERE / "replaced.json").read_text()).items():
                    (HERE / name).write_text(text)
            return train_stage(context, claim, stage, start)
        """,
    )
    ends_with(0, start(job, env=meddling.environment()))
    meddling.check()
    result = head_of(tmp_path).stages["evaluate"].result["reinforce"]
    assert result["reward"] < 2
    assert result["packs"]["pack"]["questions"] == 2

    refused = ends_with(2, start(job))
    assert "reinforce.rewards.0.path.sha256" in refused
    assert "--redo reinforce" in refused
    (tmp_path / "rewards.py").write_text(FUNCTION)
    said = finish(job)
    assert "evaluate.packs.0: pack.jsonl has changed since this run began" in said
    for source in ("data.sources.0: text", "sft.sources.0: talks", "reinforce.sources.0: quest"):
        assert source in said
    assert said.count("has changed since `prepare`") == 3
    for name in REPLACED:
        (tmp_path / name).unlink()
    assert "has changed" not in (said := finish(job))
    assert "evaluate: done" in said
