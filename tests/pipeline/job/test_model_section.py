"""Parts of a model in a job, `draft` too: nested fields, presets with fields replaced, mistakes."""

import pytest
import yaml
from pydantic import ValidationError

from pion.config.draft import Draft
from pion.config.model_config import ModelConfig
from pion.config.parts import Experts
from pion.errors import BadInput
from pipeline.job.digest import differences, digest_job
from pipeline.job.file import load_job
from pipeline.job.model_section import Base
from tests.support.jobs import job_from, refusal, tiny_dict, tiny_job
from tests.support.tiny_config import tiny_config

EXPERTS = {"n": 4, "d_shared": 16}


def with_experts(**experts):
    model = tiny_dict()["model"]
    return tiny_dict(model={**model, "experts": EXPERTS | experts})


def test_a_part_is_a_section_of_the_model():
    config = tiny_job(model=with_experts(top_k=1)["model"]).model_config_resolved()
    assert config.experts == Experts(n=4, top_k=1, shared=1, d_shared=16)


def test_a_preset_keeps_the_fields_of_its_part_that_a_job_does_not_replace():
    model = {"preset": "tachyon-tiny", "experts": {"top_k": 1}}
    config = tiny_job(model=model).model_config_resolved()
    assert config.experts == Experts(n=4, top_k=1, shared=1, d_shared=704)


def test_null_takes_a_part_of_the_preset_away():
    model = {"preset": "daisy-pico", "windows": None, "logit_cap": None}
    config = tiny_job(model=model).model_config_resolved()
    assert (config.windows, config.logit_cap) == (None, None)
    assert config.heads is not None
    everywhere = {"preset": "daisy-pico", "wiring": {"attention_layers": None}}
    wiring = tiny_job(model=everywhere).model_config_resolved().wiring
    assert wiring.attention_layers is None
    assert wiring.skips


def test_null_is_as_good_as_nothing_where_a_model_needs_a_value():
    model = {"preset": "tachyon-tiny", "d_model": None, "rope_theta": None}
    assert tiny_job(model=model).model_config_resolved() == ModelConfig.preset("tachyon-tiny")


def test_another_number_of_layers_needs_the_parts_that_name_layers():
    with pytest.raises(BadInput, match=r"n_layers 24: the preset daisy-280m names some of its 12"):
        ModelConfig.preset("daisy-280m", n_layers=24)
    given = {"wiring": {"attention_layers": None, "skips": [[23, 0]]}, "values": None}
    model = {"preset": "daisy-280m", "n_layers": 24, **given}
    config = tiny_job(model=model).model_config_resolved()
    assert config.wiring.skips == ((23, 0),)


def test_a_changed_field_of_a_part_is_shown_by_its_path():
    two, one = (digest_job(tiny_job(model=with_experts(top_k=top_k)["model"])) for top_k in (2, 1))
    dense = digest_job(tiny_job())
    (change,) = differences(two.inputs["pretrain"], one.inputs["pretrain"], two.before)
    assert str(change) == "model.experts.top_k: 2 → 1"
    changes = differences(dense.inputs["pretrain"], two.inputs["pretrain"], two.before)
    assert "model.experts.n: (not set) → 4" in map(str, changes)


# Overrides of a job with experts, and of one without parts.
IMPOSSIBLE = {
    "experts": (
        ("model.experts.top_k=5", "experts.top_k 5 is more than experts.n 4"),
        ("model.experts.n=0", "experts.n is 0; it must be a whole number of at least 1"),
        ("model.experts.balance=batch", "model.experts.balance: unknown key"),
        ("model.experts.d_shared=0", "experts.d_shared: give the width of the shared experts"),
        ("model.d_ff=44", "d_ff 44 and d_model 32 must be multiples of 8"),
    ),
    "plain": (
        ("model.windows={tokens: 100}", "windows.tokens 100 is not a multiple of windows.block"),
        ("model.wiring={skips: [[0, 1]]}", "layer 0 can't read layer 1, which is computed later"),
        ("model.wiring={skips: [[5, 1]]}", "wiring names layer 5, but the model has 2 layers"),
        ("model.wiring={attention_layers: []}", "some layer must have attention"),
        ("model.values={layers: [0, 0]}", r"values.layers is \[0, 0\]; name at least one layer"),
        ("model.heads={rotary: third}", "model.heads.rotary"),
        ("model.heads={scale: 0}", "heads.scale is 0.0; it must be a number above 0"),
        ("model.logit_cap=-1", "model.logit_cap"),
        ("pretrain.window_schedule=cubic", "pretrain.window_schedule: the model has no windows"),
        ("pretrain.muon_momentum_start=0.99", "muon_momentum_start: 0.99 is above muon_momentum"),
    ),
}


@pytest.mark.parametrize(
    ("job", "override", "message"),
    [(job, *one) for job, rows in IMPOSSIBLE.items() for one in rows],
)
def test_a_part_that_can_not_be_is_refused_with_its_field(tmp_path, job, override, message):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(with_experts() if job == "experts" else tiny_dict()))
    with pytest.raises(BadInput, match=message):
        load_job(path, [override])


LEARNED = {"steps": 2, "ids": 40}
ALONE = {"rates": {"draft": 1, "others": 0}}


def from_base(folder, learned, model, **changes):
    """Return a job that fine-tunes a model with this draft block, whose shape is looked up."""
    base = Base("base", "a" * 64, "b" * 64, tiny_config(seq_len=96, draft=learned).to_dict())
    given = {"model": {"from": "base"} | model, "tokenizer": None, "pretrain": None, **changes}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(tiny_dict(**given)))
    return load_job(path, find_base=lambda values: base)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, Draft(steps=2, ids=40)),
        ({"draft": None}, None),
        ({"draft": {}}, Draft(steps=2, ids=40)),
        ({"draft": {"steps": 3}}, Draft(steps=3, ids=40)),  # so the block is kept
        ({"draft": {"ids": 50}}, Draft(steps=2, ids=50)),
        ({"draft": {"ids": None}}, Draft(steps=2)),
    ],
)
def test_a_job_keeps_changes_or_takes_away_the_block_of_its_base(tmp_path, model, expected):
    config = from_base(tmp_path, LEARNED, model).model_config_resolved()
    assert config.draft == expected


def test_a_context_may_be_longer_than_that_of_the_base_unless_it_learned_positions():
    assert job_from(tiny_config(), model__seq_len=192).model_config_resolved().seq_len == 192
    with pytest.raises(ValidationError, match=r"exceeds the \d+ positions that base has learned"):
        job_from(tiny_config(positions="learned"), model__seq_len=192)


@pytest.mark.parametrize(
    ("learned", "model"),
    [(LEARNED, {}), (LEARNED, {"draft": {"steps": 3}}), (LEARNED, {"draft": None}), (None, {})],
)
def test_lora_keeps_or_drops_the_block_of_its_base(tmp_path, learned, model):
    assert from_base(tmp_path, learned, model, sft__lora={"rank": 4}).lora("sft") is not None


@pytest.mark.parametrize(
    ("learned", "which"), [(None, "no draft block"), (LEARNED, "a draft block of other ids")]
)
def test_lora_does_not_train_a_new_block(tmp_path, learned, which):
    with pytest.raises(BadInput) as refused:
        from_base(tmp_path, learned, {"draft": {"ids": 50}}, sft__lora={"rank": 4})
    message = str(refused.value)
    assert refused.value.exit_code == 2
    assert f"the model it starts from has {which}, so" in message
    assert "Nothing was lost. Remove model.draft." in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__draft": {"ids": "many"}}, "model.draft.ids"),
        ({"model__draft": {"ids": 321}}, "draft.ids is 321; it must be from 1 to 320, the ids of"),
        ({"model__draft": {"ids": 0}}, "draft.ids is 0; it must be from 1 to 320"),
        ({"model__draft": {"ids": 1.5}}, "model.draft.ids"),
        ({"model__draft": {"ids": 10**30}}, "draft.ids is 1000"),
        ({"model__draft": {"steps": 0}}, "draft.steps is 0; it must be a whole number of at least"),
        ({"model__draft": {"steps": 17}}, "draft.steps is 17; it must be at most 16"),
        ({"model__draft": {"steps": None}}, "draft.steps is None; it must be a whole number"),
        ({"model__draft": {"depth": 1}}, "model.draft.depth: unknown key"),
        ({"model__draft": True}, "model.draft"),
        ({"pretrain__phases": [ALONE]}, "only draft would be trained: the model has none"),
        (
            {"pretrain__phases": [{"until": 0.5}, ALONE]},
            "pretrain.phases.1.rates: only draft would be trained: the model has none",
        ),
        (
            {"model__draft": {}, "sft__lora": {}, "sft__phases": [ALONE]},
            "sft.phases: LoRA trains only its additions; remove `phases`",
        ),
    ],
)
def test_a_block_that_can_not_be_is_refused_with_its_field(tmp_path, changes, words):
    assert words in refusal(tmp_path, **changes)


@pytest.mark.parametrize(
    "changes", [{"sft__lora": {"rank": 4}}, {"pretrain__phases": [{"until": 0.5}, ALONE]}]
)
def test_a_new_block_may_be_taught_in_a_last_phase_and_kept_by_lora(changes):
    assert tiny_job(model__draft={}, **changes).model_config_resolved().draft == Draft()
