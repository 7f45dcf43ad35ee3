"""`--help-job` explains every field of a job file."""

import re

from pipeline.job import Job
from pipeline.job.every_field import sections_of
from pipeline.job.reference import help_job
from pipeline.job.section import keys_of


def every_path(section: type, prefix: str = "") -> set[str]:
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
    assert lines["pretrain.lr"] == (
        "pretrain.lr  (number; 0.0003; schedule)  peak learning rate of AdamW"
    )
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
    assert "peak learning rate of AdamW" in table
