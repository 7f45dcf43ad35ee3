"""From what a user calls a model (or nothing) to a folder that can be loaded."""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NotRequired

from annotated_types import Predicate
from typing_extensions import TypedDict

from pion.config.lora import is_adapter
from pion.data.chat.template_source import find_template
from pion.errors import BadInput, told
from pion.files import expand
from pion.formats.weights import INDEX, WEIGHTS
from pion.later_fields import shown
from pion.untrusted import read_file
from pipeline.console.formats import printable
from pipeline.job.stages import CONVERSING, TRAINING
from pipeline.models.bring import bring_model
from pipeline.state.find_run import known_runs, no_such_run, open_run, runs_in
from pipeline.state.head import CheckpointEntry, Head
from pipeline.state.record_json import build, open_record, parse_record
from pipeline.state.run_state import RunState
from pipeline.state.shared.bases import BASES
from pipeline.state.stores import DEFAULT_STORE, open_store
from pipeline.state.stores.base import is_key

CONFIG = "config.json"
HUB_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")
HUB_MODEL = re.compile(r"hf://[^/]+/[^/]+")  # with one more part, it is a run in a store


@dataclass(frozen=True)
class FoundModel:
    """Where a model's weights are.

    Attributes:
        folder: the folder with the weights, or a seed's `.pt` file.
        kind: how they are stored.
        label: what to call the model in messages.
        chat: whether it was fine-tuned on conversations.
        tokenizer: its `tokenizer.json`, or None if it is missing, as for a seed's `.pt` file.
        base: of an adapter, the model that it was trained on; None: this is a whole model.
        commit: of a model on the Hub, the commit that was downloaded.
    """

    folder: Path
    kind: Literal["checkpoint", "export", "seed"]
    label: str
    chat: bool
    tokenizer: Path | None
    base: FoundModel | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Listed:
    """A checkpoint that a run's HEAD lists."""

    state: RunState
    head: Head
    entry: CheckpointEntry


def find_model(text: str | None) -> FoundModel:
    """Return the model called `text`; None is the final model of the latest run in `runs/`.

    `text` is one of these:
      * a run: `demo` or `<store>/demo`, with `@pretrain`, `@sft`, `@prefer` or `@STEP` for another
        checkpoint than its last. The weights of a run in a remote store (`s3://bucket/prefix/demo`,
        `hf://user/name/demo`) are downloaded unless this machine has them.
      * the folder of a checkpoint or of an exported model, or a seed's `.pt` file.
      * a Hub repository: `user/name` or `hf://user/name`, with `@REVISION`.

    Of an adapter of LoRA, the base that it names is found too.

    Raises:
        BadInput: nothing has that name; the message lists what was searched. Or an adapter's base
            is not there.
        StoreError: the store that would have it can't be read.
    """
    return _found(_latest() if text is None else locate_model(text))


def _found(found: Path | Listed | str, *, whole: bool = False) -> FoundModel:
    if isinstance(found, Listed):
        return _of_run(found, whole=whole)
    if isinstance(found, Path):
        return found_in(found, whole=whole) if found.is_dir() else _from_file(found)
    return _from_hub(found, whole=whole)


def locate_model(text: str) -> Path | Listed | str:
    """Return where `find_model` finds `text`, and download nothing.

    The result is a file or folder, a checkpoint of a run, or a Hub repository (`user/name` or
    `user/name@REVISION`). The Hub is not asked whether it has the repository.

    Raises:
        BadInput: nothing has that name.
        StoreError: the store that would have it can't be read.
    """
    if HUB_MODEL.fullmatch(text):
        return text.removeprefix("hf://")
    if "://" in text:
        found = _in_run(text)
        if found is None:
            raise BadInput(no_such_run(open_run(text)))
        return found
    path = expand(text)
    no_folder = path.exists() and not path.is_dir()  # a file, or a device
    if no_folder or (path / CONFIG).is_file() or _has_model(path):
        return path
    found = _in_run(text)
    if found is not None:
        return found
    if path.exists():
        raise BadInput(
            f"{text} is a folder, but not a model: it has neither {CONFIG} (a checkpoint or an "
            f"exported model) nor HEAD.json (a run). {known_runs(open_store(DEFAULT_STORE))}"
        )
    if HUB_REPO.fullmatch(text) and not text.startswith(f"{DEFAULT_STORE}/"):
        return text
    raise BadInput(
        f"no model {text!r}: there is no such file, folder or run. "
        f"{known_runs(open_store(DEFAULT_STORE))} A Hub repository is written user/name."
    )


# ---------------------------------------------------------------- runs


def _latest() -> Listed:
    store = open_store(DEFAULT_STORE)
    unreadable: dict[str, BadInput] = {}
    runs = runs_in(store, unreadable)
    for error in unreadable.values():  # it may be the latest
        print(printable(f"A run is left out: {error}"), file=sys.stderr, flush=True)
    for name, head in reversed(runs.items()):
        if head.checkpoints:
            return _listed(RunState(store, name), head, None)
    raise BadInput(
        f"no model was named, and no run in {store.url} has a checkpoint yet. Train one "
        "(pion run jobs/demo.yaml), or name a model: a run, a folder, or a Hub repository."
    )


def _in_run(text: str) -> Listed | None:
    whole, _, suffix = text.rpartition("@")
    for run, which in ((text, None), (whole, suffix)):
        try:
            state = open_run(run)
        except BadInput:  # not the name of a run
            continue
        head = state.read()
        if head is not None:
            return _listed(state, head, which)
    return None


def _of_run(found: Listed, *, whole: bool = False) -> FoundModel:
    state, head, entry = found.state, found.head, found.entry
    folder = bring_model(state, head, entry.key)
    done = entry.key in {record.checkpoint for record in head.stages.values()}
    label = f"{state.name} ({entry.stage}, step {entry.step:,}{'' if done else ', unfinished'})"
    return found_in(folder, label, whole=whole)


def _listed(state: RunState, head: Head, which: str | None) -> Listed:
    """Return the checkpoint of a stage or step.

    Without `which`, it is the one that was published: the last or best one of the last stage.
    """
    entries = list(head.checkpoints)  # newest first
    if which is None:
        # Of evaluate, it is the best one where the job asked for that.
        stages = ("evaluate", *reversed(TRAINING))
        last = [head.stages[stage].checkpoint for stage in stages if stage in head.stages]
        entries.sort(key=lambda e: last.index(e.key) if e.key in last else len(last))
    elif which.isdecimal():
        entries = [e for e in entries if e.step == int(which)]
    else:
        entries = [e for e in entries if e.stage == which]
    if not entries:
        present = ", ".join(f"{e.stage} {e.step}" for e in head.checkpoints) or "none"
        wanted = "checkpoint" if which is None else f"checkpoint @{which}"
        raise BadInput(f"run {state.name} has no {wanted}; its checkpoints are: {present}.")
    return Listed(state, head, entries[0])


# ---------------------------------------------------------------- files, folders, the Hub


def _from_file(path: Path) -> FoundModel:
    if path.suffix != ".pt":
        raise BadInput(f"{path} is not a model: expected a .pt file or a folder with {WEIGHTS}")
    beside = [path.with_name("tokenizer.json"), *sorted(path.parent.glob("*tokenizer.json"))]
    tokenizer = next((candidate for candidate in beside if candidate.is_file()), None)
    # The seeds' trainers name the folder or the file of a fine-tuned model "sft".
    chat = "sft" in f"{path.parent.name}/{path.name}".lower()
    return FoundModel(path, "seed", path.name, chat, tokenizer)


def _has_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX)) or is_adapter(folder)


def found_in(folder: Path, label: str | None = None, *, whole: bool = False) -> FoundModel:
    """Return the model in a folder. Of an adapter, its base is found, on the Hub too.

    Raises BadInput if the folder has no model, if a base can't be found, and for an adapter where
    the model must be `whole`, as a base must be.
    """
    if not is_adapter(folder):
        return _from_folder(folder, label)
    if whole:
        raise BadInput(f"{label or folder} is an adapter itself, not a whole model")
    base = _base_of(folder, label or str(folder))
    if (folder / CONFIG).is_file():
        return dataclasses.replace(_from_folder(folder, label), base=base)
    tokenizer, chat = folder / "tokenizer.json", find_template(folder) is not None
    if not tokenizer.is_file():  # peft does not write it
        return FoundModel(folder, "export", label or str(folder), base.chat, base.tokenizer, base)
    return FoundModel(folder, "export", label or str(folder), chat, tokenizer, base)


def _base_of(folder: Path, label: str) -> FoundModel:
    """Return the base of the adapter in a folder, which errors call `label`."""
    from pion.formats.peft_folder import base_of

    base = base_of(folder)
    name = base.name if base.commit is None else f"{base.name}@{base.commit}"
    with told(f"{label} is an adapter, and its base {shown(name)} can't be used: "):
        if base.name.startswith("checkpoints/") and is_key(base.name):
            # A key in the run's folder; `folder` is checkpoints/<stage>/<step>-<epoch> in it.
            return found_in(folder.absolute().parents[2] / base.name, whole=True)
        if base.name.startswith(f"{BASES}/") and is_key(base.name):
            return found_in(folder.absolute().parents[3] / base.name, whole=True)
        return _found(locate_model(name), whole=True)


def _from_folder(folder: Path, label: str | None = None) -> FoundModel:
    if not (folder / CONFIG).is_file():
        raise BadInput(f"{folder} is not a model: it has {WEIGHTS}, but no {CONFIG}")
    tokenizer = folder / "tokenizer.json"
    kind: Literal["checkpoint", "export"] = "export"
    if not (folder / "state.json").is_file():
        chat = find_template(folder) is not None
    else:
        state = _read_state(folder)
        kind, chat, key = "checkpoint", state.get("stage") in CONVERSING, state.get("tokenizer")
        if key and not tokenizer.is_file():
            # A key in the run's folder; `folder` is checkpoints/<stage>/<step>-<epoch> in it.
            tokenizer = folder.absolute().parents[2] / key
    found = tokenizer if tokenizer.is_file() else None
    return FoundModel(folder, kind, label or str(folder), chat, found)


@open_record
class _State(TypedDict):
    """What `state.json` of a checkpoint says about its model."""

    stage: NotRequired[str]
    tokenizer: NotRequired[Annotated[str, Predicate(is_key)] | None]


def _read_state(folder: Path) -> _State:
    path = folder / "state.json"
    try:
        return build(_State, parse_record(read_file(path), str(path)), str(path))
    except OSError as error:
        raise BadInput(f"{path} can't be read: {error}") from None


def _from_hub(text: str, *, whole: bool = False) -> FoundModel:
    repo, _, revision = text.partition("@")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    from pipeline.state.stores.hub.errors import explain_reading

    if not sys.stderr.isatty():
        disable_progress_bars()  # in a log, a bar may stand on the line of an error
    patterns = ["*.json", "*.safetensors", "*.jinja"]
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        what, page = f"Hub model {text}", f"https://huggingface.co/{repo}"
        why = explain_reading(error, what, None, page) or f"{what}: {error}"
        raise BadInput(f"no model {text!r} here: there is no such folder or run. {why}") from None
    if not _has_model(folder):
        raise BadInput(f"the Hub repository {repo} has no {WEIGHTS}: Pion can't load it")
    # The Hub's client names the folder of a snapshot by its commit.
    return dataclasses.replace(found_in(folder, f"hf://{text}", whole=whole), commit=folder.name)
