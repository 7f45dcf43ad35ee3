"""What a job refuses, by the rows of refusals.yaml."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from pipeline.job.file import load_job
from pipeline.job.model_section import Base
from tests.paths import JOBS
from tests.pipeline.job.conftest import GOOD
from tests.pipeline.job.test_mixes import with_phases
from tests.support.jobs import tiny_dict
from tests.support.refusals import JOB, job, refusals
from tests.support.tiny_config import tiny_config

SOURCES = [{"kind": "jsonl", "path": "rows.jsonl"}]


def text(content: str | bytes, overrides: Sequence[str] = ()) -> None:
    """Read a job file with this text."""
    Path(JOB).write_bytes(content if isinstance(content, bytes) else content.encode())
    load_job(Path(JOB), overrides)


def override(given: str | list[str], good: str = "") -> None:
    """Read the good job of conftest.py with overrides, and with a text after its last line."""
    text(GOOD + good, [given] if isinstance(given, str) else given)


def replaced(lines: dict[str, str]) -> None:
    """Read the good job of conftest.py with other words in its text."""
    content = GOOD
    for before, after in lines.items():
        assert before in content
        content = content.replace(before, after)
    text(content)


def pion2(overrides: list[str]) -> None:
    """Read the demo with the recipe of Pion 2."""
    recipe = "pretrain={recipe: pion2, steps: 4000}"
    load_job(JOBS / "demo.yaml", ["model={preset: pion2-base}", recipe, *overrides])


def deadline(written: str) -> None:
    """Read the good job with a deadline."""
    text(f"{GOOD}deadline: {written}\n")


def prefer(fields: dict, changes: dict | None = None) -> None:
    """Read a job that learns preferences."""
    job({"prefer": {"sources": SOURCES, **fields}, **(changes or {})})


def reinforce(fields: dict, changes: dict | None = None) -> None:
    """Read a job that learns by rewards."""
    usual = {"sources": SOURCES, "rewards": ["number"], "max_tokens": 32}
    job({"reinforce": {**usual, **fields}, **(changes or {})})


def phases(of: list[dict], changes: dict | None = None) -> None:
    """Read a job whose phases read three sources."""
    job(with_phases(*of, **(changes or {})))


def draft_of_base(learned: dict | None, draft: dict) -> None:
    """Read a job that adds a draft block by LoRA to a model with another one or none."""
    base = Base("base", "a" * 64, "b" * 64, tiny_config(seq_len=96, draft=learned).to_dict())
    model = {"from": "base", "draft": draft}
    given = tiny_dict(model=model, tokenizer=None, pretrain=None, sft__lora={"rank": 4})
    Path(JOB).write_text(yaml.safe_dump(given), encoding="utf-8")
    load_job(Path(JOB), find_base=lambda values: base)


OF_A_JOB = text, override, replaced, pion2, deadline, prefer, reinforce, phases, draft_of_base
test_refusal = refusals(__file__, *OF_A_JOB)
