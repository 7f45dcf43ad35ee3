"""Mistakes in what the phases of pretraining read are found in the job file."""

import pytest

from pipeline.job.train_sections import phases_of
from tests.support.jobs import refusal, tiny_job

TEXT = {"kind": "text", "path": "text"}
IDS = {"name": "ids", "kind": "npy", "path": "x"}
SOURCES = [{"name": name} | TEXT for name in ("web", "code", "qa")]


def with_phases(*phases, **changes):
    """Return the changes of a tiny job whose phases read three sources."""
    usual = {"data__sources": SOURCES, "data__documents": True, "sft": None}
    return usual | {"pretrain__phases": list(phases)} | changes


FIRST = {"until": 0.5, "mix": {"web": 9, "code": 1}}
LONG = {"seq_len": 64}


def test_a_mix_a_length_and_a_base_of_angles_stay_until_a_later_phase_changes_them():
    other = {"web": 1, "qa": "2x"}
    second = {"until": "decay", "mix": other, "rope_theta": 5.0, **LONG}
    job = tiny_job(**with_phases(FIRST, second, {}))
    assert [phase.mix for phase in job.mix_phases] == [FIRST["mix"], other, None]
    assert [phase.length for phase in job.mix_phases] == [1, 2, 2]
    assert [phase.rope_theta for phase in phases_of(job.pretrain)] == [None, 5.0, 5.0]
    assert job.borders == [("pretrain", 10), ("pretrain", 16)]


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("phases.0.mix: no source is called 'wbe'; did you mean 'web'? (web, code, qa)",
         with_phases({"mix": {"wbe": 1}})),
        ("data.sources.3.name: web is the name of data.sources.0, too",
         with_phases(FIRST, {}, data__sources=[*SOURCES, SOURCES[0]])),
        ("data.sources.3: phases name their sources: give it a name",
         with_phases(FIRST, {}, data__sources=[*SOURCES, TEXT])),
        ("data.sources.0.weight: the phases say how much is read; remove it",
         with_phases(FIRST, {}, data__sources=[SOURCES[0] | {"weight": 2}, *SOURCES[1:]])),
        ("0.mix: missing; a later phase has one", with_phases({"until": 0.5}, {"mix": {"web": 1}})),
        ("phases.0.mix: no source has a share, and passes alone can't", with_phases({"mix": {}})),
        ("phases.1.mix: no source has a share", with_phases(FIRST, {"mix": {"qa": "4x"}})),
        ("phases.1.mix.web: 0 reads nothing: give a number above 0, or passes such as",
         with_phases(FIRST, {"mix": {"web": 0}})),
        ("phases.0.until: decay; the rate never falls: give a share or a number of",
         with_phases(FIRST | {"until": "decay"}, {}, pretrain__schedule="constant")),
        ("phases.1.seq_len: 50 must be a multiple of data.seq_len (32), such as 64",
         with_phases(FIRST, {"seq_len": 50})),
        ("4 rows of 32 are no whole number of rows of 96. Use 3 or 6",
         with_phases(FIRST, {"seq_len": 96})),
        ("phases.1.seq_len: 64 exceeds the model's context 32. Set model.seq_len to 64",
         with_phases(FIRST, LONG, model__seq_len=32)),
        ("tokens must attend only within their document. Set data.documents to true",
         with_phases(FIRST, LONG, data__documents=False)),
        ("phases.1.seq_len: rows of data.sources.3 (kind npy) need not follow each other, so",
         with_phases(FIRST, LONG, data__sources=[*SOURCES, IDS])),
        ("phases.1.rope_theta: the model has learned positions, so there are no angles",
         with_phases(FIRST, {"rope_theta": 1e5}, model__positions="learned")),
        ("phases.0.mixx: unknown key (value {'web': 1}); did", with_phases({"mixx": {"web": 1}})),
        ("started\n  line 38  pretrain.phases.0.until: 'late' should be where the phase ends: a sh",
         with_phases(FIRST | {"until": "late"}, {})),
    ],
)  # fmt: skip
def test_what_phases_can_not_read_is_refused_in_the_job_file(tmp_path, changes, message):
    assert message in refusal(tmp_path, **changes)
