"""The files that a run has besides HEAD."""

from pipeline.state.run_state import RunState


def test_jobs_and_stage_descriptions_are_kept_by_digest(run: RunState) -> None:
    assert run.read_job("abc") is None
    assert run.read_stage("sft", "abc") is None
    run.write_job("abc", "name: demo\n")
    run.write_stage("sft", "abc", {"inputs": {"sft.lr": 1e-3}})
    assert run.read_job("abc") == "name: demo\n"
    assert run.read_stage("sft", "abc") == {"inputs": {"sft.lr": 1e-3}}
