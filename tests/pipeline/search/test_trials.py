"""What `--vary` takes, and what it refuses. test_search.py refuses settings that train the same."""

from contextlib import nullcontext

import pytest

from pion.errors import BadInput
from pipeline.search.trials import (
    Request,
    branch_of,
    refuse_unpaired,
    run_name,
    settings_of,
)
from pipeline.state.stores.base import is_run_name
from tests.pipeline.search.fake_runs import write_job
from tests.support.jobs import tiny_job


def test_every_combination_of_the_values_is_a_setting():
    """Commas within brackets separate nothing."""
    varied = ["pretrain.lr=1e-3, 2e-3", "model.values={layers: [1, 2]},{layers: [3]}"]
    assert list(settings_of(varied)) == [
        "pretrain.lr=1e-3 model.values={layers: [1, 2]}",
        "pretrain.lr=1e-3 model.values={layers: [3]}",
        "pretrain.lr=2e-3 model.values={layers: [1, 2]}",
        "pretrain.lr=2e-3 model.values={layers: [3]}",
    ]


@pytest.mark.parametrize(
    ("varied", "says"),
    [
        (["pretrain.lr"], "is not key=value,value"),
        (["=1,2"], "is not key=value,value"),
        (["pretrain.lr=1,"], "is not key=value,value"),
        (["pretrain.lr=1e-3"], "one value leaves nothing to compare"),
        (["pretrain.lr=1e-3,1e-3"], "1e-3 is given twice"),
        (["pretrain.lr=1,2", "pretrain.lr=3,4"], "is given twice"),
        ([f"pretrain.lr={','.join(map(str, range(65)))}"], "65 combinations are more than 64"),
    ],
)
def test_texts_that_are_no_choice_are_refused(varied, says):
    with pytest.raises(BadInput, match=says):
        settings_of(varied)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.seq_len=16", "changes the data or the tokenizer, so its runs are not paired"),
        ("data.held_out=0.1", "changes the data"),
        ("tokenizer.train.vocab_size=300", "changes the data"),
        ("pretrain.steps=30", "another pretrain.steps are not paired"),
        ("pretrain.global_batch=8", "another pretrain.global_batch"),
        ("seed=7", "another seed"),
        ("name=other", "another name or store"),
    ],
)
def test_settings_whose_runs_are_not_paired_are_refused(tmp_path, override, says):
    request = Request(path=write_job(tmp_path), vary=())
    with pytest.raises(BadInput, match=says) as refused:
        refuse_unpaired(override, request.job(), request.job(override))
    assert "Nothing was started" in str(refused.value)


@pytest.mark.parametrize(
    "override", ["pretrain.lr=1e-3", "model.values={layers: [1]}", "a=é/" * 30]
)
def test_names_of_runs_are_legal_and_differ_by_setting_seed_and_content(override):
    names = {run_name("tiny", override, seed, digest) for seed in (1, 2) for digest in ("x", "y")}
    assert len(names) == 4
    assert all(is_run_name(name) for name in names)


# ---------------------------------------------------------------- settings of later phases


SOURCES = [{"kind": "text", "path": f"{name}.txt", "name": name} for name in ("web", "qa")]
PHASES = [{"until": 6, "mix": {"web": 1}}, {"until": 12}, {"mix": {"web": 2, "qa": 1}}]


@pytest.mark.parametrize(
    ("varied", "branch"),
    [
        (["pretrain.phases.1.mix={web: 1},{qa: 1}"], 1),
        (["pretrain.phases.2.mix.qa=1,2", "pretrain.phases.2.rates.matrix=1,0.5"], 2),
        (["pretrain.phases.2.mix.qa=1,2", "pretrain.phases.1.mix.qa=1,2"], 1),
        (["pretrain.phases.1.mix.qa=1,2", "pretrain.lr=1e-3,2e-3"], 0),
        (["pretrain.phases.0.mix.web=1,2"], 0),
        (["pretrain.phases.3.mix={web: 1},{qa: 1}"], 0),
    ],
)
def test_settings_differ_from_the_first_phase_on_that_they_change(varied, branch):
    job = tiny_job(data={"sources": SOURCES}, pretrain__phases=PHASES)
    assert branch_of(job, settings_of(varied)) == branch


def test_phases_that_read_the_same_have_no_border_to_branch_at():
    job = tiny_job(pretrain__phases=[{"until": 6, "rates": {"matrix": 1}}, {}])
    assert branch_of(job, settings_of(["pretrain.phases.1.rates.matrix=1,2"])) == 0


@pytest.mark.parametrize(
    ("phase", "trained", "refused"), [(1, True, False), (0, True, True), (0, False, False)]
)
def test_another_mix_is_paired_unless_a_tokenizer_learns_from_it(tmp_path, phase, trained, refused):
    tokenizer = {} if trained else {"tokenizer": {"file": "t.json"}, "model__vocab_size": 300}
    changes = {"data__sources": SOURCES, "pretrain__phases": PHASES, **tokenizer}
    request = Request(path=write_job(tmp_path, **changes), vary=())
    override = f"pretrain.phases.{phase}.mix={{qa: 1}}"
    unpaired = pytest.raises(BadInput, match="changes the data or the tokenizer")
    with unpaired if refused else nullcontext():
        refuse_unpaired(override, request.job(), request.job(override))
