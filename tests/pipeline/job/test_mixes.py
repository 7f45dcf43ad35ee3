"""What the phases of pretraining read stays until a later phase changes it."""

from pipeline.job.train_sections import phases_of
from tests.support.jobs import tiny_job

TEXT = {"kind": "text", "path": "text"}
SOURCES = [{"name": name} | TEXT for name in ("web", "code", "qa")]


def test_a_mix_a_length_and_a_base_of_angles_stay_until_a_later_phase_changes_them():
    first = {"until": 0.5, "mix": {"web": 9, "code": 1}}
    second = {"until": "decay", "mix": {"web": 1, "qa": "2x"}, "rope_theta": 5.0, "seq_len": 64}
    data = {"data__sources": SOURCES, "data__documents": True, "sft": None}
    job = tiny_job(**data, pretrain__phases=[first, second, {}])
    assert [phase.mix for phase in job.mix_phases] == [first["mix"], second["mix"], None]
    assert [phase.length for phase in job.mix_phases] == [1, 2, 2]
    assert [phase.rope_theta for phase in phases_of(job.pretrain)] == [None, 5.0, 5.0]
    assert job.borders == [("pretrain", 10), ("pretrain", 16)]
