"""Parts of a model in a job, `draft` too: nested fields, presets with fields replaced, mistakes."""

import pytest
import yaml
from pydantic import ValidationError

from pion.config.draft import Draft
from pion.config.model_config import ModelConfig
from pion.config.parts import Experts
from pipeline.job.digest import differences, digest_job
from pipeline.job.file import load_job
from pipeline.job.model_section import Base
from tests.support.jobs import job_from, tiny_dict, tiny_job
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
    "changes", [{"sft__lora": {"rank": 4}}, {"pretrain__phases": [{"until": 0.5}, ALONE]}]
)
def test_a_new_block_may_be_taught_in_a_last_phase_and_kept_by_lora(changes):
    assert tiny_job(model__draft={}, **changes).model_config_resolved().draft == Draft()
