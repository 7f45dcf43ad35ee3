"""Read a YAML file and `key=value` overrides as a Job, or report every mistake at once."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pion.bounded_yaml import BoundedLoader, read_yaml, unreadable
from pion.errors import BadInput, PionError
from pion.untrusted import DEEPEST, LARGEST_JOB, too_large
from pipeline.console.masking import refuse_in_values
from pipeline.job import Job
from pipeline.job.mistakes import (
    Document,
    Mistake,
    beyond_limits,
    in_misspelled_sections,
    listing,
    mistakes_in,
    shown,
)
from pipeline.job.model_section import Base
from pipeline.job.section import join
from pipeline.machine.own_files import file_meant

# From a job's values, which have `model.from`, to the model that it starts from.
FindBase = Callable[[dict[str, Any]], Base]

# Characters of the longest dotted path whose line is remembered.
LONGEST_PATH = 1000


class JobLoader(BoundedLoader):
    """YAML as people write it: `3e-4` is a number (plain YAML 1.1 wants `3.0e-4`)."""


JobLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _as_text(loader: JobLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


# Moments stay texts: YAML would read only some of their forms, and errors would lack the key.
JobLoader.add_constructor("tag:yaml.org,2002:timestamp", _as_text)


def load_job(
    path: str | Path, overrides: Sequence[str] = (), find_base: FindBase | None = None
) -> Job:
    """Return the job of a file, or of Pion's own job of this name, with `key=value` overrides.

    `find_base` looks up a model to start from; without it, a job with `model.from` is a mistake.

    Raises:
        BadInput: the file can't be read or parsed, a URL in it has a user or a password, any field
            is wrong, or a number exceeds its limit; the message lists every mistake with its line,
            dotted path, value and what was expected.
    """
    path = file_meant(path, "jobs")
    return _loaded(_parse(path, overrides), path, find_base)


def job_of_text(text: str, path: Path, find_base: FindBase | None = None) -> Job:
    """Return the job that a file with this text at `path` would be. Raises as `load_job` does."""
    return _loaded(_parse_text(text, path), path, find_base)


def _loaded(document: Document, path: Path, find_base: FindBase | None) -> Job:
    refuse_in_values(document.values, str(path))
    job = _validated(document, path, find_base)
    mistakes = beyond_limits(job, document)
    if mistakes:
        raise BadInput(listing(path, mistakes))
    job._folder = path.resolve().parent
    return job


def parse_job(text: str, where: str, find_base: FindBase | None = None) -> Job:
    """Return the job that `job_text` recorded; `where` names it in errors. Raises BadInput.

    Numbers may exceed their `most`, which is for new work: a version may lower it.
    """
    document = copy.deepcopy(_parse_record(text, Path(where)))
    return _validated(document, Path(where), find_base)


def job_text(path: str | Path, overrides: Sequence[str] = ()) -> str:
    """Return the record of a job: the file as written, or with the overrides merged in.

    Raises BadInput for a record that `parse_job` would refuse for its size.
    """
    path = file_meant(path, "jobs")
    if not overrides:
        return read_yaml(path, "job file")
    header = "".join(f"# {override}\n" for override in overrides)
    text = f"# {path.name} with these overrides merged in:\n{header}" + yaml.safe_dump(
        _parse(path, overrides).values, sort_keys=False, allow_unicode=True
    )
    if len(text) > LARGEST_JOB:
        raise too_large(f"{path} with its overrides", LARGEST_JOB)
    return text


def mistake_in(path: str | Path, overrides: Sequence[str], key: str, text: str) -> BadInput:
    """Return the error for a field that is valid by itself, but not now, with its line."""
    path = file_meant(path, "jobs")
    document = _parse(path, overrides)
    return BadInput(listing(path, [Mistake(document.where(key), key, text)]))


def _validated(document: Document, path: Path, find_base: FindBase | None) -> Job:
    model = document.values.get("model")
    base = None
    if find_base is not None and isinstance(model, dict) and isinstance(model.get("from"), str):
        try:
            base = find_base(document.values)
        except PionError as error:
            mistakes = [
                m for m in _read(document, None)[1] if m.path not in ("model", "model.from")
            ]
            if isinstance(error, BadInput):
                mistakes.append(Mistake(document.where("model.from"), "model.from", str(error)))
            raise BadInput(listing(path, mistakes)) if mistakes else error from None
    job, mistakes = _read(document, base)
    if job is None or mistakes:
        raise BadInput(listing(path, mistakes))
    return job


def _read(document: Document, base: Base | None) -> tuple[Job | None, list[Mistake]]:
    """Return the job of a document, None if it is none, and every mistake in it."""
    try:
        job = Job.model_validate(document.values, context={"base": base})
    except ValidationError as error:
        misspelled = in_misspelled_sections(document, error, base)
        return None, mistakes_in(document, error) + misspelled
    return job, mistakes_in(document, None)


# ---------------------------------------------------------------- reading


def _parse(path: Path, overrides: Sequence[str]) -> Document:
    document = _parse_text(read_yaml(path, "job file"), path)
    for override in overrides:
        _apply(override, document)
    return document


def _parse_text(text: str, path: Path) -> Document:
    if len(text) > LARGEST_JOB:
        raise too_large(str(path), LARGEST_JOB)
    try:
        loader = JobLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise BadInput(f"{path} is empty: a job is a mapping of sections (pion run --help-job)")
        if not isinstance(node, yaml.MappingNode):
            raise BadInput(
                f"{path} line {node.start_mark.line + 1}: a job is a mapping (`name: …`, "
                f"`model: …`)"
            )
        lines: dict[str, int] = {}
        _index(node, "", lines, path)
        return Document(loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        raise unreadable(error, str(path)) from None


# A watcher reads the same record every few seconds.
_parse_record = functools.lru_cache(maxsize=4)(_parse_text)


def _index(node: yaml.Node, path: str, lines: dict[str, int], file: Path) -> None:
    """Record the line of every dotted path under `node`; refuse keys given twice."""
    if len(path) > LONGEST_PATH:
        return
    children: list[tuple[str, int, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(str(key.value), key.start_mark.line + 1, value) for key, value in node.value]
        first: dict[str, int] = {}
        for name, line, _ in children:
            if name in first:
                raise BadInput(
                    f"{file} line {line}: `{join(path, name):.200}` is given twice "
                    f"(first on line {first[name]}); keep one of the two"
                )
            first[name] = line
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(i), v.start_mark.line + 1, v) for i, v in enumerate(node.value)]
    for name, line, value in children:
        lines[join(path, name)] = line
        _index(value, join(path, name), lines, file)


def _apply(override: str, document: Document) -> None:
    """Set one `dotted.path=value`. Missing sections are created; items of lists must exist."""
    path, equals, text = override.partition("=")
    path = path.strip()
    keys = path.split(".")
    given = f"override {override!r:.200}"
    if not equals or not all(keys):
        raise BadInput(f"{given} is not key=value, such as pretrain.lr=1e-3")
    if len(keys) > DEEPEST:
        raise BadInput(f"{given} is nested deeper than {DEEPEST} levels")
    try:
        value = yaml.load(text, Loader=JobLoader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise unreadable(error, f"{given}: the value") from None

    here: Any = document.values
    for depth, key in enumerate(keys):
        parent = ".".join(keys[:depth])
        if isinstance(here, list):
            if not key.isdecimal() or len(key) > 9 or int(key) >= len(here):
                raise BadInput(f"{given}: `{parent}` is a list of {len(here)}, numbered from 0")
        elif not isinstance(here, dict):
            raise BadInput(f"{given}: `{parent}` is {shown(here)}, not a section")
        slot: Any = int(key) if isinstance(here, list) else key
        if depth == len(keys) - 1:
            here[slot] = value
        else:
            inner = here.get(slot) if isinstance(here, dict) else here[slot]
            if parent == "" and key == "model" and isinstance(inner, str):
                inner = {"preset": inner}
            here[slot] = {} if inner is None else inner
            here = here[slot]
    document.overridden.add(path)
