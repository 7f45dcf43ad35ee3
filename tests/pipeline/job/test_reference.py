"""docs/jobs.md says what the code says, and its examples are valid."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from pipeline.job import Job
from pipeline.job.every_field import chapters
from pipeline.job.file import JobLoader
from pipeline.job.reference import EXAMPLES, FIRST, WHOLE, reference
from tests.paths import REPOSITORY

COMMAND = "uv run python -m pipeline.job.reference > docs/jobs.md"


def test_the_committed_reference_is_what_the_code_generates() -> None:
    committed = (REPOSITORY / "docs" / "jobs.md").read_text(encoding="utf-8")
    assert committed == reference(), f"docs/jobs.md is out of date. Write it again: {COMMAND}"


def test_there_is_an_example_for_every_section_and_kind_of_source() -> None:
    wanted = [c.path if c.kind is None else f"{c.path}/{c.kind}" for c in chapters()]
    assert sorted(EXAMPLES) == sorted(wanted)


def test_the_fields_that_people_set_first_exist() -> None:
    fields = {field.path for c in chapters() for field in c.fields}
    sections = {c.path for c in chapters()}
    assert FIRST.keys() <= fields | sections


def test_the_first_example_is_a_whole_job() -> None:
    assert Job.model_validate(read(WHOLE)).train_stages == ["pretrain"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_is_valid(name: str) -> None:
    path, _, kind = name.partition("/")
    example = read(EXAMPLES[name])
    if kind:
        section = path.partition(".")[0]
        base = read(EXAMPLES[section])
        base[section]["sources"] = [example]
        example = base
    Job.model_validate(read(WHOLE) | example)


def test_lists_of_layers_are_called_lists_and_unset_is_said_once() -> None:
    lines = [line for line in reference().splitlines() if line.startswith("| `")]
    (prices,) = (line for line in lines if "a price for each GPU" in line)
    assert prices.startswith("| `prices`")
    assert not [line for line in lines if line.count("unset: ") > 1]


def test_a_reader_can_tell_what_each_field_holds() -> None:
    for line in reference().splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert len(cells) == 5, line
            assert all(cells), line


def read(text: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.load(text, Loader=JobLoader)  # noqa: S506 (a SafeLoader)
    return values
