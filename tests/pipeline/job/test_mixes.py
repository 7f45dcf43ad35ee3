"""Mistakes in what the phases of pretraining read are found in the job file."""

from pipeline.job.train_sections import phases_of
from tests.support.jobs import tiny_job

SOURCES = [{"name": name, "kind": "text", "path": "text"} for name in ("web", "code", "qa")]
FIRST = {"until": 0.5, "mix": {"web": 9, "code": 1}}
LONG = {"seq_len": 64}


def with_phases(*phases, **changes):
    """Return the changes of a tiny job whose phases read three sources."""
    usual = {"data__sources": SOURCES, "data__documents": True, "sft": None}
    return usual | {"pretrain__phases": list(phases)} | changes


def test_a_mix_a_length_and_a_base_of_angles_stay_until_a_later_phase_changes_them():
    other = {"web": 1, "qa": "2x"}
    second = {"until": "decay", "mix": other, "rope_theta": 5.0, **LONG}
    job = tiny_job(**with_phases(FIRST, second, {}))
    assert [phase.mix for phase in job.mix_phases] == [FIRST["mix"], other, None]
    assert [phase.length for phase in job.mix_phases] == [1, 2, 2]
    assert [phase.rope_theta for phase in phases_of(job.pretrain)] == [None, 5.0, 5.0]
    assert job.borders == [("pretrain", 10), ("pretrain", 16)]
