"""The job files that start from a model on the Hub can be checked and planned as they come.

A Hub on this machine has repositories with the names, settings and layouts of the published ones.
"""

import json
import re

import pytest

from pipeline.cli import main
from pipeline.console.formats import amount
from tests.paths import JOBS, REPOSITORY
from tests.support.hub_server import USER, WRITE_TOKEN, hub_server
from tests.support.published_data import publish_data
from tests.support.published_models import PUBLISHED, REPOSITORIES, base_of, load_shipped, publish
from tests.support.waiting import LONG_SECONDS

# By job: the model that it starts from, and the training stages.
STARTS = {
    "qwen3-0.6b-lora": ("Qwen/Qwen3-0.6B", ["sft"]),
    "smollm2-135m-continue": ("HuggingFaceTB/SmolLM2-135M", ["pretrain"]),
    "smollm2-360m-prefer": ("HuggingFaceTB/SmolLM2-360M", ["sft", "prefer"]),
    "smollm2-360m-sft": ("HuggingFaceTB/SmolLM2-360M-Instruct", ["sft"]),
}
# By default, one of them is checked and planned as a whole: it is the cheapest to trace.
each_start = pytest.mark.parametrize(
    "job",
    [
        pytest.param(job, marks=[] if job == "smollm2-360m-sft" else pytest.mark.soak)
        for job in STARTS
    ],
)


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("published")
    with hub_server() as hub:
        for repo in REPOSITORIES:
            publish(hub, repo, scratch / repo)
        publish_data(hub)
        yield hub


@pytest.fixture(scope="module")
def checked():
    """What `pion check` printed of each job that was checked, for the tests that only read it."""
    return {}


@pytest.fixture
def printed(shared_hub, tmp_path, monkeypatch, capsys):
    """`printed(command, job)`: what `pion command job --json` prints, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shared_hub.use(monkeypatch, tmp_path / "hf", token=None)
    for limit in ("SECONDS", "CONVERSATION_SECONDS"):  # a busy machine may need longer
        monkeypatch.setattr(f"pipeline.rent.check.command.{limit}", LONG_SECONDS)

    def run(command, job, *more):
        path = JOBS / f"{job}.yaml" if isinstance(job, str) else job
        assert main([command, str(path), *more, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_every_job_that_starts_from_a_model_of_the_hub_is_tried_here():
    starts = {path.stem: load_shipped(path).base for path in JOBS.glob("*.yaml")}
    assert {name: base.source for name, base in starts.items() if base and base.commit} == {
        name: repo for name, (repo, _) in STARTS.items()
    }


def once(printed, checked, job):
    if job not in checked:
        checked[job] = printed("check", job)
    return checked[job]


@each_start
def test_it_passes_its_check_without_a_token(job, printed, checked):
    repo, stages = STARTS[job]
    rows = {row["name"]: row for row in once(printed, checked, job)}
    assert all(row["ok"] is not False for row in rows.values())
    parameters = PUBLISHED[REPOSITORIES[repo][0]][2]
    assert rows["model"]["words"].startswith(f"{repo}: {amount(parameters)} parameters")
    for stage in stages:
        source = "data.sources.0" if stage == "pretrain" else f"{stage}.sources.0"
        assert "the first record can be read" in rows[source]["words"]


@pytest.mark.parametrize(
    "job", ["smollm2-360m-sft", pytest.param("qwen3-0.6b-lora", marks=pytest.mark.soak)]
)
def test_its_check_counts_the_conversations_and_shows_the_first(job, printed, checked):
    rows = {row["name"]: row for row in once(printed, checked, job)}
    assert "3 passes" in rows["conversations"]["words"]
    assert "of the first" not in rows["conversations"]["words"], "all of them are counted"
    first = rows["the first"]["words"]
    assert "<|im_start|>user\nHow long do I boil 0 eggs?<|im_end|>" in first
    assert "⟦Boil 0 eggs" in first, "of Qwen3, no thoughts are learned"


@pytest.mark.soak
def test_the_check_of_preferences_counts_pairs_and_shows_both_answers(printed, checked):
    rows = once(printed, checked, "smollm2-360m-prefer")
    (counted,) = [row["words"] for row in rows if row["name"] == "preferences"]
    assert "of the first 1,000 preferences: 195 pairs" in counted
    assert "2 passes" in counted
    assert "before the first step, the reference is computed once" in counted
    _, first = [row["words"] for row in rows if row["name"] == "the first"]
    assert "prompt: <|user|>\nHow long do I boil 0 eggs?\n<|assistant|>" in first
    assert "chosen: ⟦Boil 0 eggs" in first
    assert "rejected: ⟦0 eggs?" in first


@each_start
def test_its_plan_prices_the_whole_job_on_a_small_card(job, printed, tmp_path):
    plan = printed("plan", job, "--gpu", "RTX4090", "prices={RTX4090: 0.4}")
    (row, *_) = plan["estimates"]
    assert row["fits"]
    assert 0 < row["dollars"] < 1
    assert [stage["stage"] for stage in row["stages"]] == STARTS[job][1]
    partly = any("take as many times longer" in note for note in plan["notes"])
    assert partly == (job == "smollm2-360m-prefer"), "the others read 1,000 conversations or none"
    assert not (tmp_path / "runs").exists()


def test_the_job_and_the_conversation_of_the_readme_pass_their_check(
    printed, tmp_path, monkeypatch
):
    readme = (REPOSITORY / "README.md").read_text().partition("## Fine-tune a model")[2]
    job, line = (re.findall(rf"```{kind}\n(.*?)```", readme, re.S)[0] for kind in ("yaml", "json"))
    (tmp_path / "my-assistant.yaml").write_text(job)
    lines = [line.replace("axolotl", f"axolotl {number}") for number in range(200)]
    (tmp_path / "questions-chats.jsonl").write_text("".join(lines))
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    few = "sft.global_batch=1"
    rows = printed("check", tmp_path / "my-assistant.yaml", f"publish.to=hf://{USER}/mine", few)
    words = {row["name"]: row["words"] for row in rows if row["ok"] is not False}
    assert {row["name"] for row in rows} == words.keys()
    assert "3 passes" in words["conversations"]
    assert "can be written" in words["publish"]


def test_the_stand_ins_without_a_hub_have_the_same_shape(printed):
    from pipeline.base.job_with_base import read_job

    for job in STARTS:
        found = read_job(JOBS / f"{job}.yaml").base
        assert found.config == base_of({"model": {"from": found.source}}).config
