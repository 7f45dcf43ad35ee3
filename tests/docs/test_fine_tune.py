"""What docs/fine-tune.md shows is read as it stands there: jobs, sources and conversations."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from pion.data.chat.conversation import parse_conversation
from pion.data.chat.messages import parse_messages
from tests.paths import REPOSITORY
from tests.support.published_models import load_shipped

TEXT = (REPOSITORY / "docs" / "fine-tune.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.S)


def test_its_job_is_valid_and_may_have_each_of_its_sources(tmp_path: Path) -> None:
    job, sources, measured = blocks("yaml")
    path = tmp_path / "job.yaml"
    for source in yaml.safe_load(sources)["sources"]:
        content = yaml.safe_load(job)
        content["sft"]["sources"] = [source]
        path.write_text(yaml.safe_dump(content))
        assert load_shipped(path).stages == ["prepare", "sft", "evaluate", "publish"]
    # Its folder is not here; a model of the same settings stands for it.
    path.write_text(yaml.safe_dump(yaml.safe_load(measured) | {"model": content["model"]}))
    assert load_shipped(path).stages == ["prepare", "sft", "evaluate", "publish"]


def test_its_conversations_have_the_layouts_that_are_read() -> None:
    plain, with_tools, openhermes = map(json.loads, blocks("json"))
    roles = [[m["role"] for m in parse_messages(c, "here").messages] for c in (plain, openhermes)]
    assert roles == [["system", "user", "assistant"], ["user", "assistant"]]
    for record in (plain, openhermes):
        assert parse_conversation(record, "here")[-1].role == "assistant"
    found = parse_messages(with_tools, "here")
    assert [message["role"] for message in found.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert found.tools is not None
    assert found.messages[1]["tool_calls"]


def test_its_program_writes_a_table_as_conversations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = (block for block in blocks("python") if "csv" in block)
    monkeypatch.chdir(tmp_path)
    with Path("questions.csv").open("w", newline="") as table:
        rows = [("instruction", "input", "output"), ("Add.", "1, 2", "3"), ("Hi", "", 'Say "hi"')]
        csv.writer(table).writerows(rows)
    exec(program, {})
    lines = [json.loads(line) for line in Path("chat.jsonl").read_text().splitlines()]
    read = [[turn.text for turn in parse_conversation(line, "here")] for line in lines]
    assert read == [["Add.\n\n1, 2", "3"], ["Hi", 'Say "hi"']]
