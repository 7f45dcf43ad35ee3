"""Parts of a model in a job: nested fields, presets with some fields replaced, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pion.errors import BadInput
from pion.parts import Experts
from pipeline.job.digest import differences, digest_job
from pipeline.job.file import load_job
from tests.support.jobs import tiny_dict, tiny_job

EXPERTS = {"n": 4, "d_shared": 16}


def with_experts(**experts: object) -> dict[str, object]:
    model = tiny_dict()["model"]
    return tiny_dict(model={**model, "experts": EXPERTS | experts})


def test_a_part_is_a_section_of_the_model() -> None:
    config = tiny_job(model=with_experts(top_k=1)["model"]).model_config_resolved()
    assert config.experts == Experts(n=4, top_k=1, shared=1, d_shared=16)


def test_a_preset_keeps_the_fields_of_its_part_that_a_job_does_not_replace() -> None:
    model = {"preset": "tachyon-tiny", "experts": {"top_k": 1}}
    config = tiny_job(model=model).model_config_resolved()
    assert config.experts == Experts(n=4, top_k=1, shared=1, d_shared=704)


def test_a_changed_field_of_a_part_is_shown_by_its_path() -> None:
    two, one = (digest_job(tiny_job(model=with_experts(top_k=top_k)["model"])) for top_k in (2, 1))
    dense = digest_job(tiny_job())
    (change,) = differences(two.inputs["pretrain"], one.inputs["pretrain"], two.before)
    assert str(change) == "model.experts.top_k: 2 → 1"
    changes = differences(dense.inputs["pretrain"], two.inputs["pretrain"], two.before)
    assert "model.experts.n: (not set) → 4" in map(str, changes)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.experts.top_k=5", "experts.top_k 5 is more than experts.n 4"),
        ("model.experts.n=0", "experts.n is 0; it must be a whole number of at least 1"),
        ("model.experts.balance=batch", "model.experts.balance: unknown key"),
        ("model.experts.d_shared=0", "experts.d_shared: give the width of the shared experts"),
        ("model.d_ff=44", "d_ff 44 and d_model 32 must be multiples of 8"),
    ],
)
def test_a_part_that_can_not_be_is_refused_with_its_field(
    tmp_path: Path, override: str, message: str
) -> None:
    import yaml

    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(with_experts()))
    with pytest.raises(BadInput, match=message):
        load_job(path, [override])
