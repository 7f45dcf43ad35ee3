"""docs/jobs.md and `--help-job` say what the code says, and the examples are valid."""

import re

import pytest
import yaml

from pipeline.job import Job
from pipeline.job.every_field import chapters, sections_of
from pipeline.job.file import JobLoader
from pipeline.job.help_job import EXAMPLES, FIRST, WHOLE, help_job, reference
from pipeline.job.section import keys_of
from tests.paths import REPOSITORY

COMMAND = "uv run python -m pipeline.job.help_job > docs/jobs.md"


def test_the_committed_reference_is_what_the_code_generates():
    committed = (REPOSITORY / "docs" / "jobs.md").read_text(encoding="utf-8")
    assert committed == reference(), f"docs/jobs.md is out of date. Write it again: {COMMAND}"


def test_there_is_an_example_for_every_section_and_kind_of_source():
    wanted = [c.path if c.kind is None else f"{c.path}/{c.kind}" for c in chapters()]
    assert sorted(EXAMPLES) == sorted(wanted)


def test_the_fields_that_people_set_first_exist():
    fields = {field.path for c in chapters() for field in c.fields}
    sections = {c.path for c in chapters()}
    assert FIRST.keys() <= fields | sections


def test_the_first_example_is_a_whole_job():
    assert Job.model_validate(read(WHOLE)).train_stages == ["pretrain"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_is_valid(name):
    path, _, kind = name.partition("/")
    example = read(EXAMPLES[name])
    if kind:
        section, _, key = path.partition(".")
        base = read(EXAMPLES[section])
        base[section][key] = [example]
        example = base
    Job.model_validate(read(WHOLE) | example)


def test_lists_of_layers_are_called_lists_and_unset_is_said_once():
    lines = [line for line in reference().splitlines() if line.startswith("| `")]
    (prices,) = (line for line in lines if "a price for each GPU" in line)
    assert prices.startswith("| `prices`")
    assert not [line for line in lines if line.count("unset: ") > 1]


def test_a_reader_can_tell_what_each_field_holds():
    for line in reference().splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert len(cells) == 3, line
            assert all(cells), line


def read(text):
    values = yaml.load(text, Loader=JobLoader)  # noqa: S506 (a SafeLoader)
    return values


def every_path(section, prefix=""):
    paths = set()
    for name, field in keys_of(section).items():
        inner = sections_of(field.annotation)
        here = f"{prefix}{name}"
        if len(inner) != 1:
            paths.add(here)
        step = ".N." if len(inner) > 1 else "."
        for each in inner:
            paths |= {p for p in every_path(each, here + step) if not p.endswith(".N.kind")}
    return paths


def test_help_lists_every_field_with_type_default_and_part():
    lines = {line.split("  ")[0]: line for line in help_job().splitlines()}
    assert every_path(Job) <= lines.keys()
    assert lines["pretrain.lr"] == ("pretrain.lr  (number; 0.0003; schedule)  peak learning rate")
    assert "(whole number; required; schedule)" in lines["pretrain.steps"]
    assert "(wsd | cosine | constant; wsd; schedule)" in lines["pretrain.schedule"]
    assert "(true or false; true; identity)" in lines["publish.private"]
    assert "runtime" in lines["hardware.threads"]


def test_every_field_has_a_meaning_and_a_part():
    for line in help_job().splitlines():
        if line and not line.startswith("#"):
            path, details, meaning = re.fullmatch(r"(\S+)  \((.*?)\)  (.+)", line).groups()
            assert details.split("; ")[-1] in ("identity", "schedule", "runtime"), path
            assert len(meaning) > 3, path


def test_help_on_a_terminal_is_a_table_no_wider_than_it():
    table = re.sub(r"\x1b\[[0-9;]*m", "", help_job(100))
    assert max(len(line) for line in table.splitlines()) <= 100
    assert "peak learning rate" in table
