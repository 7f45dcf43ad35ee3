"""Refusals as rows: what is given, and the words with which it is refused.

The file refusals.yaml of a folder has the rows, such as

    - {job: {pretrain__lr: fast}, says: "pretrain.lr: 'fast' should be a number"}
    - {run: fork demo demo, uses: [finished], says: demo exists already}

A value may also be `!times [x, 3]`, which is xxx, or `!bytes "\\xff"`.

One key of a row is its subject: a function that takes the value, and refuses it. `job` and `run`
are there for each folder; the folder's test_refusals.py has the others. The further parameters of
a subject are keys too. These keys are for every subject:

    says      words of the message, or a list of them. White space counts as one space.
    lacks     words that are not in the message.
    exit      the exit code, if it is not 2.
    files     what is there before, by path: a text, bytes, a list (JSON Lines) or a mapping (JSON).
    set       variables of the environment.
    uses      fixtures that prepare the folder.
    prints    words on standard output, which is empty otherwise.
    mistakes  how many mistakes of a job file are counted, if it is not one.

Every row also requires that no file below the working directory was made, changed or removed, that
the message has no traceback, and that it has at most 1,000 characters: what is refused may be long.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pion.errors import PionError
from pipeline.job.file import load_job
from tests.support.jobs import tiny_dict

Row = dict[str, Any]
Subject = Callable[..., object]

FOR_EVERY_SUBJECT = {"says", "lacks", "exit", "files", "set", "uses", "prints", "mistakes", "line"}
MOST_CHARACTERS = 1000
# A subject may write this file, and reads it.
JOB = "job.yaml"


class RowLoader(yaml.CSafeLoader):
    """Reads YAML with the tags of rows."""

    def times(self, node: yaml.Node) -> Any:
        value, number = self.construct_sequence(node, deep=True)
        return value * number

    def bytes_of(self, node: yaml.Node) -> bytes:
        return str(self.construct_scalar(node)).encode("latin-1")


RowLoader.add_constructor("!times", RowLoader.times)
RowLoader.add_constructor("!bytes", RowLoader.bytes_of)


def job(changes: dict[str, Any], overrides: Sequence[str] = ()) -> None:
    """Read the file of a tiny job with these changes; see `tiny_dict`."""
    Path(JOB).write_text(yaml.safe_dump(tiny_dict(**changes)), encoding="utf-8")
    load_job(Path(JOB), overrides)


def run(command: str) -> int:
    """Do what `pion` does with these arguments, and return its exit code."""
    from pipeline.cli import main  # imports all commands

    return main(shlex.split(command))


@contextlib.contextmanager
def in_one_line(place: str) -> Iterator[None]:
    """Require that a refusal begins with this place, and has one line."""
    with pytest.raises(PionError) as refused:
        yield
    assert str(refused.value).startswith(place)
    assert "\n" not in str(refused.value)
    raise refused.value


def refusals(test_file: str, *subjects: Subject) -> Callable[..., None]:
    """Return the test of the rows next to a test file."""
    path = Path(test_file).with_name("refusals.yaml")
    every = {subject.__name__: subject for subject in (job, run, *subjects)}

    @pytest.mark.parametrize("row", rows_of(path), ids=_id_of)
    def test_refusal(
        row: Row,
        request: pytest.FixtureRequest,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for fixture in row.get("uses", ()):
            request.getfixturevalue(fixture)
        for name, value in row.get("set", {}).items():
            monkeypatch.setenv(name, value)
        require_refusal(row, every, capsys)

    return test_refusal


def rows_of(path: Path) -> Iterator[Row]:
    """Yield the rows of a file, each with its place as `line`."""
    loader = RowLoader(path.read_text(encoding="utf-8"))
    for node in loader.get_single_node().value:
        row = loader.construct_object(node, deep=True)
        yield {**row, "line": f"{path.parent.name}/{path.name}:{node.start_mark.line + 1}"}


def require_refusal(
    row: Row, subjects: dict[str, Subject], capsys: pytest.CaptureFixture[str]
) -> None:
    """Require that what a row gives is refused as the row says."""
    line, (subject, value, others) = row["line"], _call_of(row, subjects)
    for file, content in row.get("files", {}).items():
        write_file(Path(file), content)
    before = _contents(Path.cwd())
    capsys.readouterr()
    try:
        code = subject(value, **others)
        printed, message = capsys.readouterr()
    except PionError as refused:
        code, printed, message = refused.exit_code, capsys.readouterr().out, str(refused)
    after = _contents(Path.cwd())
    assert code == row.get("exit", 2), f"{line}: not refused: exit code {code}, {message!r}"
    assert len(message) <= MOST_CHARACTERS, f"{line}: {len(message)} characters: {message[:200]!r}…"
    for words in _listed(row["says"]):
        assert _spaced(words) in _spaced(message), f"{line}: {words!r} is not in {message!r}"
    for words in ("Traceback", *_listed(row.get("lacks", []))):
        assert _spaced(words) not in _spaced(message), f"{line}: {words!r} is in {message!r}"
    for words in _listed(row.get("prints", [])):
        assert _spaced(words) in _spaced(printed), f"{line}: {words!r} is not in {printed!r}"
    counted = re.findall(r"has (\d+) mistakes?(; nothing was started)?", message)
    expected = (str(row.get("mistakes", 1)), "; nothing was started")
    assert counted in ([], [expected]), f"{line}: {counted}, not {expected}: {message!r}"
    assert "prints" in row or not printed, f"{line}: it printed {printed!r}"
    changed = {file for file, _ in before.items() ^ after.items()}
    assert not changed, f"{line}: files were made, changed or removed: {sorted(changed)}"


def _call_of(row: Row, subjects: dict[str, Subject]) -> tuple[Subject, Any, dict[str, Any]]:
    """Return the subject of a row, its value, and its other arguments."""
    names = row.keys() & subjects.keys()
    assert len(names) == 1, f"{row['line']}: a row has one of {sorted(subjects)}, not {names}"
    assert row.get("says"), f"{row['line']}: a row says words of the message"
    (name,) = names
    subject = subjects[name]
    others = row.keys() - FOR_EVERY_SUBJECT - names
    unknown = others - inspect.signature(subject).parameters.keys()
    assert not unknown, f"{row['line']}: unknown keys {unknown}"
    return subject, row[name], {key: row[key] for key in others}


def write_file(path: Path, content: object) -> None:
    """Write a text, bytes, JSON Lines (a list) or JSON (a mapping)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(record) + "\n" for record in content)
    elif isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else str(content).encode())


def _contents(folder: Path) -> dict[str, bytes]:
    """Return each file below a folder but the job's, and what it has; links as where they lead."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = str(path.readlink()).encode()
        elif path.is_file() and path != folder / JOB:
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def _listed(words: str | list[str]) -> list[str]:
    return [words] if isinstance(words, str) else words


def _spaced(words: str) -> str:
    return " ".join(words.split())


def _id_of(row: Row) -> str:
    return _listed(row.get("says", "?"))[0][:60]
