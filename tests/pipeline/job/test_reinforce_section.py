"""`reinforce` in the job file: its defaults, what is refused, and what its digest covers."""

from pipeline.data.judge import judged_by
from pipeline.job.digest import digest_job
from pipeline.job.file import load_job
from pipeline.job.train_sections import settings_of
from tests.support.jobs import tiny_dict, tiny_job

SOURCES = [{"kind": "jsonl", "path": "questions.jsonl"}]
FIELDS = {"sources": SOURCES, "rewards": ["number"], "max_tokens": 32}


def reinforce(**fields):
    return tiny_job(reinforce=FIELDS | fields).reinforce


def test_the_defaults_are_those_of_the_recipes_that_worked():
    section = reinforce()
    assert (section.lr, section.min_lr, section.weight_decay) == (3e-6, 3e-7, 0.0)
    assert (section.answers, section.global_batch, section.epochs) == (8, 16, 1.0)
    assert reinforce(lora={}).lr == 3e-5
    assert section.learning == settings_of(reinforce(steps=5)).learning


def test_a_reward_may_be_given_by_its_name_alone():
    given = ["number", {"kind": "regex", "pattern": ".", "weight": -0.5}]
    made = [(one.kind, one.weight) for one in reinforce(rewards=given).rewards]
    assert made == [("number", 1), ("regex", -0.5)]


def test_another_function_is_another_stage(tmp_path):
    reward = {"kind": "python", "path": "rewards.py", "function": "f"}
    job = tmp_path / "job.yaml"
    job.write_text(str(tiny_dict(reinforce=FIELDS | {"rewards": [reward]})))

    def digest(text):
        (tmp_path / "rewards.py").write_text(text)
        return digest_job(load_job(job)).stages["reinforce"]

    assert digest("def f(text): return 1") == digest("def f(text): return 1")
    assert digest("def f(text): return 2") != digest("def f(text): return 1")
    # What is only reported is in no digest.
    one, other = (tiny_job(reinforce=FIELDS | {"pass_at": at}) for at in (1.0, 0.5))
    assert digest_job(one).stages == digest_job(other).stages


def test_runs_with_other_rewards_are_not_compared_by_them(tmp_path):
    (tmp_path / "rewards.py").write_text("def f(text): return 1")
    own = {"kind": "python", "path": str(tmp_path / "rewards.py"), "function": "f"}
    fields = FIELDS | {"rewards": [own]}
    same = judged_by(tiny_job(reinforce=fields)), judged_by(tiny_job(reinforce=fields | {"lr": 1}))
    others = ({"pass_at": 0.5}, {"max_tokens": 8}, {"rewards": [own | {"weight": 2}, "exact"]})
    found = {judged_by(tiny_job(reinforce=fields | other)) for other in others}
    (tmp_path / "rewards.py").write_text("def f(text): return 2")
    found |= {judged_by(tiny_job(reinforce=fields)), *same}
    assert (len({*same}), len(found)) == (1, 5)
