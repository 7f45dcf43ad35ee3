"""`pion try` of later phases: a trunk of each seed, endings of it, and each source apart."""

import json
from functools import partial

import pytest

from pion.errors import BadInput
from pipeline.commands.fork import fork_for
from tests.pipeline.search import fake_runs
from tests.pipeline.search.fake_runs import FakeRuns, Killed, write_job

pytestmark = pytest.mark.usefixtures("here")

STEPS, BORDER, SEEDS = 40, 30, 3
ENDINGS = ("{web: 1}", "{web: 2, qa: 1}", "{web: 1, qa: 1}")
VARY = (f"pretrain.phases.1.mix={','.join(ENDINGS)}",)
search = partial(fake_runs.search, varied=VARY, as_json=True)
# What the trunks and the endings take.
ALL_STEPS = SEEDS * (BORDER + len(ENDINGS) * (STEPS - BORDER))


def by_share(job, step):
    """Return losses that fall on qa and rise on web with the share of qa, and a noise."""
    mix = job.mix_phases[1].mix
    share = mix.get("qa", 0) / sum(mix.values())
    noise = 0.001 * ((job.seed * 7 + job.mix_phases[1].order * 5 + round(share * 6) * 3) % 4)
    return {"web": 3.0 + 0.1 * share + noise, "qa": 5.0 - (share > 0) - 0.2 * share + noise}


def job_in(folder):
    sources = [{"kind": "text", "path": f"{name}.txt", "name": name} for name in ("web", "qa")]
    phases = [{"until": BORDER, "mix": {"web": 1}}, {"mix": {"web": 2, "qa": 1}}]
    changes = {"pretrain__phases": phases, "pretrain__warmup_steps": 1, "data__sources": sources}
    return write_job(folder, pretrain__steps=STEPS, **changes)


@pytest.fixture
def job(tmp_path):
    return job_in(tmp_path)


@pytest.fixture
def result(capsys):
    """Return what a search has printed as JSON."""

    def result(job, runs, **options):
        search(job, runs, **options)
        return json.loads(capsys.readouterr().out)

    return result


def test_a_trunk_of_each_seed_is_trained_once_and_every_ending_to_its_end(job, result):
    runs = FakeRuns(sources=by_share)
    shown = result(job, runs)
    assert shown["steps"] == runs.steps == ALL_STEPS
    assert shown["grid_steps"] == SEEDS * len(ENDINGS) * STEPS
    assert sum("-try-trunk-" in name for name in runs.started) == SEEDS
    assert len(runs.started) == len(set(runs.started)) == SEEDS * (1 + len(ENDINGS))
    assert shown["choice"] == "pretrain.phases.1.mix={web: 1, qa: 1}"
    assert {run["seed"] for run in shown["runs"]} == {42, 43, 44}


def test_the_verdict_names_the_source_that_got_worse(job, capsys):
    search(job, FakeRuns(sources=by_share), as_json=False)
    out = capsys.readouterr().out
    chosen = "pretrain.phases.1.mix={web: 1, qa: 1} is"
    assert f"\n{chosen} better than " in out
    assert f"\non qa: {chosen} better than {{web: 2, qa: 1}}: −0.033 ± 0.001" in out
    assert f"\non web: {chosen} worse than {{web: 2, qa: 1}}: +0.017 ± 0.001" in out
    assert "; it is worse than {web: 1}: +0.051 ± 0.001" in out
    assert f"nats per token at step {STEPS}" in out


def test_one_source_can_decide_in_place_of_the_mean(job, result):
    shown = result(job, FakeRuns(sources=by_share), on="web")
    assert (shown["on"], shown["choice"]) == ("web", "pretrain.phases.1.mix={web: 1}")
    assert shown["verdict"] == shown["sources"]["web"]["verdict"]
    assert "on qa: pretrain.phases.1.mix={web: 1} is worse" in shown["sources"]["qa"]["verdict"]


def test_a_search_that_is_killed_after_every_run_and_every_fork_ends_the_same(
    job, tmp_path, capsys, result
):
    def kill(number):
        raise Killed

    def fork_and_kill(*arguments, **options):
        fork_for(*arguments, **options)
        raise Killed

    broken, kills = FakeRuns(sources=by_share, meddle=kill), 0
    while True:
        try:
            search(job, broken, fork=fork_and_kill)
            break
        except Killed:
            kills += 1
    assert kills == SEEDS * (1 + 2 * len(ENDINGS))
    assert broken.steps == ALL_STEPS, "no step is trained twice"
    ended = json.loads(capsys.readouterr().out)
    (tmp_path / "whole").mkdir()
    whole = result(job_in(tmp_path / "whole"), FakeRuns(sources=by_share))
    for key in ("choice", "step", "others", "verdict", "sources", "steps"):
        assert ended[key] == whole[key]


def test_all_endings_continue_a_run_that_is_there_in_several_orders_of_their_rows(job, result):
    first, runs = FakeRuns(sources=by_share), FakeRuns(sources=by_share)
    first([job, "name=own"])
    with pytest.raises(BadInput, match=rf"own has no checkpoint of pretrain at step {BORDER}"):
        search(job, runs, trunk="own")
    first([job, "name=paused", f"pretrain.pause_at={BORDER}"])
    shown = result(job, runs, trunk="paused")
    assert shown["steps"] == runs.steps == SEEDS * len(ENDINGS) * (STEPS - BORDER)
    assert [run["seed"] for run in shown["runs"]] == 3 * [0, 1, 2]
    assert " pretrain.phases.1.order=0 name=" in shown["command"]
    assert shown["sources"]["qa"]["others"][0]["sem"] > 0
    assert not any("trunk" in name for name in runs.started)


def test_a_run_with_another_past_is_not_forked(job, tmp_path):
    runs = FakeRuns(sources=by_share)
    runs([job, "name=other", "pretrain.phases.0.mix.qa=1", f"pretrain.pause_at={BORDER}"])
    with pytest.raises(BadInput, match=r"(?s)other can't be continued.*phases\.0\.mix") as refused:
        search(job, runs, trunk="other")
    assert "Nothing was forked" in str(refused.value)
    assert "--redo" not in str(refused.value)
    assert not list((tmp_path / "runs").glob("*-try-*[0-9a-f]"))


def test_one_ending_each_has_no_error(job, capsys):
    search(job, FakeRuns(sources=by_share), seeds=1, as_json=False)
    out = capsys.readouterr().out
    assert "is noise: −0.5" in out
    assert out.count("± unknown") >= 4


def test_a_trunk_that_diverges_leaves_its_endings_without_a_result(job, capsys):
    runs = FakeRuns(sources=by_share, diverge=lambda name: "trunk" in name)
    search(job, runs, as_json=False)
    assert len(runs.started) == SEEDS
    assert "its trunk diverged: step 3 gave a loss of nan" in capsys.readouterr().out


def test_sources_are_told_apart_when_other_fields_of_such_a_job_vary(job, result):
    def by_rate(job, step):
        off = 0.1 if job.section("pretrain").lr > 2e-3 else 0.0
        noise = 0.0001 * (job.seed * 7 % 4 + (off > 0) * job.seed % 3)
        return {"web": 3.0 + off + noise, "qa": 5.0 - off / 2 + noise}

    runs = FakeRuns(sources=by_rate)
    sources = result(job, runs, varied=("pretrain.lr=1e-3,4e-3",), on="web")["sources"]
    assert not any("trunk" in name for name in runs.started)
    assert "is better than 4e-3" in sources["web"]["verdict"]
    assert "is worse than 4e-3" in sources["qa"]["verdict"]
