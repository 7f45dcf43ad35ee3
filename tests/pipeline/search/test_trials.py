"""What `--vary` takes. test_search.py has what is refused."""

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
from tests.pipeline.search.fake_runs import ROWS, write_job
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
    "override", ["pretrain.lr=1e-3", "model.values={layers: [1]}", "a=é/" * 30]
)
def test_names_of_runs_are_legal_and_differ_by_setting_seed_and_content(override):
    names = {run_name("tiny", override, seed, digest) for seed in (1, 2) for digest in ("x", "y")}
    assert len(names) == 4
    assert all(is_run_name(name) for name in names)


# ---------------------------------------------------------------- settings of later phases


SOURCES = [{"kind": "text", "path": f"{name}.txt", "name": name} for name in ("web", "qa")]
PHASES = [{"until": 6, "mix": {"web": 1}}, {"until": 12}, {"mix": {"web": 2, "qa": 1}}]


@pytest.mark.parametrize("row", ROWS["branches"], ids=str)
def test_settings_differ_from_the_first_phase_on_that_they_change(row):
    job = tiny_job(data={"sources": SOURCES}, pretrain__phases=PHASES)
    assert branch_of(job, settings_of(row["varied"])) == row["branch"]


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
