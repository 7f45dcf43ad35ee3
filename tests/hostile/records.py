"""The records of a store, for the tests that attack them: a good document of each, and its reader.

A record that is attacked has its place in `RECORDS`. The attacks are those of record_attacks.py.
"""

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from pion.errors import BadInput
from pipeline.models.find import find_model
from pipeline.report.lm_eval_rows import asked_in_words, asked_rows, lm_eval_rows
from pipeline.report.result_tables import choice_rows, chosen_checkpoint, language_rows, whose_bytes
from pipeline.report.results import Evaluated, Published, result_of
from pipeline.state.checkpoints.layout import MANIFEST, STATE, Provenance
from pipeline.state.head import Head, StageRecord
from pipeline.state.notes.deadline import DEADLINE, Asked, RunDeadline, read_deadline
from pipeline.state.notes.rental_note import NOTE, RentalNote, read_rental_note
from pipeline.state.notes.stop_requests import pending_stop
from pipeline.state.notes.watcher_beat import BEAT, read_beat
from pipeline.state.owner import Author
from pipeline.state.record_json import Number, build, parse, parse_record
from pipeline.state.rows.row_types import event_row, metrics_row
from pipeline.state.run_state import RunState, heartbeat_path
from pipeline.state.shared.records import DataState, Unneeded, Writer, read_state, state_key
from pipeline.state.workspace import read_files
from pipeline.training.setup import SavedState
from tests.hostile.hostile_run import (
    EVALUATED,
    NAME,
    NOW,
    PUBLISHED,
    as_json,
    full_head,
    path_of,
    replace,
)
from tests.hostile.record_attacks import Attack, Place
from tests.hostile.rows import FREE, ROWS


@dataclass(frozen=True)
class Record:
    """A record of a store.

    Attributes:
        good: a document with every field.
        where: the end of its name, which its refusal says.
        read: returns what is read of the bytes in a run; None if the record can't be read and is a
            courtesy, which then counts as absent. Raises BadInput.
        may: whether an attack leaves values that the record may have; None: either.
        within: what the refusal says before the place in the document; empty: it says the whole
            place; None: it says no place.
        shown: the words of `pion status` if the record can be read; None: the command reads more
            of it than `read`, or nothing.
        hidden: the words of `pion status` if it can't be read.
    """

    good: Any
    where: str
    read: Callable[[RunState, bytes], Any]
    may: Callable[[Attack], bool | None]
    within: str | None = None
    shown: str | None = None
    hidden: str = ""


def is_text(case: Attack) -> bool:
    """Return whether the attack leaves a text, though a hostile one."""
    return case.what == "escape" and isinstance(case.good, str)


def is_null(case: Attack, *names: str) -> bool:
    """Return whether the attack makes a field of these names null."""
    return case.what == "null" and case.place[-1] in names


def is_missing(case: Attack, *names: str | int) -> bool:
    """Return whether the attack takes a field of these names away."""
    return case.what == "missing" and case.place[-1] in names


# ---------------------------------------------------------------- HEAD

HEAD = as_json(full_head())
HEAD_IN = "store/demo/HEAD.json"
# HEAD has no meaning without them, although the field itself has a default.
NEEDED_IN_HEAD = {("claims",), ("claims", 0), ("format",)}


def read_head(run: RunState, data: bytes) -> Head:
    head = Head.from_json(data, HEAD_IN)
    head.to_json()
    return head


def head_may(case: Attack) -> bool:
    """Return whether the types of HEAD's fields allow the attack's value."""
    outer, kind = without_none(kind_of(case.place[:-1])), kind_of(case.place)
    if (case.place in NEEDED_IN_HEAD and case.what == "missing") or case.what in ("deep", "NaN"):
        return False
    if case.what == "missing":
        if not dataclasses.is_dataclass(outer):
            return True  # an item of a list, or a key of a free object
        field = next(f for f in dataclasses.fields(outer) if f.name == case.place[-1])
        required = (dataclasses.MISSING, dataclasses.MISSING)
        return (field.default, field.default_factory) != required
    if case.what == "null":
        return kind is Any or NoneType in get_args(kind)
    if case.what == "wrong type":
        return kind is Any
    if case.what in ("1e300", "-1"):
        return kind is Any or kind == Number
    return kind is Any or kind in (str, str | None)


def kind_of(place: Place) -> Any:
    """Return the type of the value at a place in HEAD."""
    kind: Any = Head
    for part in place:
        kind = without_none(kind)
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind, include_extras=True)[part]
        elif kind is not Any:
            arguments = get_args(kind)
            kind = arguments[1] if issubclass(get_origin(kind), Mapping) else arguments[0]
    return kind


def without_none(kind: Any) -> Any:
    if get_origin(kind) is UnionType:
        return next(arg for arg in get_args(kind) if arg is not NoneType)
    return kind


# ---------------------------------------------------------------- checkpoints

SFT = "checkpoints/sft/5-1"
FILE = {"size": 9, "sha256": "0" * 64}
LISTED: dict[str, Any] = {
    "format": 1,
    "stage": "sft",
    "step": 5,
    "epoch": 1,
    "digest": "digest",
    "at": NOW,
    "ancestor": "checkpoints/pretrain/10-1",
    "files": {"model.safetensors": FILE, "state.json": FILE},
}
SAVED: dict[str, Any] = {
    "step": 5,
    "next_row": 20,
    "skipped": [[0, 4]],
    "recent_losses": [2.5],
    "optimizer": {"steps": 5},
    "rng": {"cpu": "AAAA"},
    "plan": {
        "device": "cpu",
        "dtype": "float32",
        "micro_batch": 4,
        "world_size": 1,
        "recompute": False,
        "compile": False,
        "threads": 1,
        "deterministic": False,
    },
}
MODEL_STATE: dict[str, Any] = {"stage": "sft", "step": 5, "tokenizer": "data/1234/tokenizer.json"}


def read_manifest(run: RunState, data: bytes) -> Any:
    build(Provenance, parse(data, f"store/{MANIFEST}"), f"store/{MANIFEST}")
    return read_files(data, f"store/{MANIFEST}")


def manifest_may(case: Attack) -> bool:
    text = is_text(case) and case.place[-1] != "sha256"
    return text or is_null(case, "ancestor") or is_missing(case, *LISTED["files"])


def read_saved(run: RunState, data: bytes) -> bool:
    build(SavedState, parse_record(data, f"5-1/{STATE}"), f"5-1/{STATE}")
    return True


def saved_may(case: Attack) -> bool:
    """Return whether a trainer may get the state: an object of the same types."""
    loss = case.place == ("recent_losses", 0) and case.what in ("1e300", "-1")
    left_out = is_missing(case, 0, "recent_losses", "cpu", *SAVED["plan"])
    text = is_text(case) and case.place != ("plan", "dtype")
    missing = left_out and case.place != ("skipped", 0, 0)
    return text or missing or is_null(case, "threads") or loss


def read_model(run: RunState, data: bytes) -> bool:
    """Find the model with this state.json; it is one to chat with if the state says so."""
    folder = path_of(run, SFT)
    before = (folder / STATE).read_bytes()
    try:
        (folder / STATE).write_bytes(data)
        assert find_model(str(folder)).chat == (json.loads(data).get("stage") == "sft")
    finally:
        (folder / STATE).write_bytes(before)
    return True


def model_may(case: Attack) -> bool:
    step = case.place == ("step",) and case.what not in ("deep", "NaN")
    stage = case.place == ("stage",) and is_text(case)
    return case.what == "missing" or step or stage or is_null(case, "tokenizer")


# ---------------------------------------------------------------- results


def with_result(stage: str, data: bytes) -> Head:
    """Return a HEAD that was read with this result."""
    text = json.dumps(dataclasses.asdict(Head(stages={stage: StageRecord("d", NOW)})))
    text = text.replace('"result": {}', f'"result": {data.decode()}')
    return Head.from_json(text.encode(), HEAD_IN)


def read_evaluated(run: RunState, data: bytes) -> bool:
    """Return True if the evaluation can be shown, as text."""
    results: Any = result_of(Evaluated, with_result("evaluate", data), "evaluate", "store/demo")
    asked = [*lm_eval_rows(results), *asked_rows(results), (asked_in_words(results),)]
    for row in (*language_rows(results), *choice_rows(results), *asked):
        assert all(isinstance(cell, str) for cell in row)
    assert isinstance(chosen_checkpoint(results) + whose_bytes(results), str)
    return True


MAY_BE_NULL = ("continuations", "trivia", "train_tokens", "near_70")


def evaluated_may(case: Attack) -> bool:
    """Return whether a report can show the attack's value."""
    name = case.place[-1]
    if case.what in ("deep", "NaN"):
        return False
    if case.place[:2] == ("lm_eval", "arc_easy") and len(case.place) >= 3:
        return True  # lm-eval's own values may be anything
    if case.what == "missing":
        whole = case.place[0] in ("checkpoint", "compared_text") and len(case.place) == 2
        inside = "calibration" in case.place[:-1]
        return not (name in ("questions", "order") or whole or inside)
    if case.what == "escape" and name == "normalization":
        return True
    if case.what == "null":
        return isinstance(case.good, float) or name in MAY_BE_NULL
    return case.what in ("1e300", "-1") and isinstance(case.good, float)


def read_published(run: RunState, data: bytes) -> Any:
    return result_of(Published, with_result("publish", data), "publish", "store/demo")


def published_may(case: Attack) -> bool:
    return case.what == "missing" or is_text(case) or is_null(case, "url", "path", "card")


# ---------------------------------------------------------------- shared data

FINGERPRINT = "f" * 64
OLD, NEW, LEFT = "a" * 32, "b" * 32, "c" * 32
DATA = DataState(
    folder=OLD,
    bytes=4,
    at=NOW,
    sources=("text",),
    writer=Writer("demo", 1, "s" * 32, "host", NEW, NOW, OLD),
    delete_after=NOW,
    unneeded=(Unneeded(LEFT, NOW),),
    deleted=("d" * 32,),
)


def read_data(run: RunState, data: bytes) -> DataState:
    run.store.write(state_key(FINGERPRINT), data)
    try:
        return read_state(run.store, FINGERPRINT)[0]
    finally:
        run.store.delete(state_key(FINGERPRINT))


def data_may(case: Attack) -> bool:
    """Return whether the attack leaves a record: a field has its default, and that may be null."""
    if case.what == "missing":
        item = case.place in (("unneeded", 0), ("deleted", 0), ("sources", 0))
        return (
            item
            or case.place == ("writer", "replaces")
            or (len(case.place) == 1 and case.place != ("format",))
        )
    if case.what == "null":
        return case.place in (("folder",), ("writer",), ("delete_after",), ("writer", "replaces"))
    texts = (("sources", 0), ("writer", "session"), ("writer", "host"))
    return case.what == "escape" and case.place in texts


# ---------------------------------------------------------------- what people and machines ask

BEATEN = heartbeat_path(1)
BEAT_OF_OWNER: dict[str, Any] = {
    "epoch": 1,
    "owner": as_json(full_head().owner),
    "at": NOW,
    "beat": 3,
    "status": {"stage": "sft", "step": 5, "steps": 9, "loss": 2.5, "tokens_per_second": 9.0},
}
REQUESTED = "requests/1.json"
REQUEST: dict[str, Any] = {
    "format": 1,
    "kind": "stop",
    "at": NOW,
    "by": {"host": "host", "pid": 7, "user": "ann"},
    "reason": "pion stop",
    "except_launch": "other",
}
RENTAL = dataclasses.asdict(RentalNote(NOW, "host", "user", "launch", 1))
DUE = RunDeadline(
    NOW + 3600, 1800.0, NOW, Author("host", 7, "ann"), "pion launch", Asked(42.0, NOW, 1800.0)
)
WATCHED: dict[str, Any] = {
    "format": 1,
    "at": NOW,
    "by": dataclasses.asdict(Author("host", 7, "ann")),
    "pion": "0.1.0 (abcdef0)",
    "knows_deadlines": 1,
    "risk_at": NOW + 1800,
    "saw": {"state": "on demand", "slack": 28800.0, "reserve": 2700.0, "work_left": 80640.0},
}


def read_at(path: str, read: Callable[[RunState], Any]) -> Callable[[RunState, bytes], Any]:
    """Return the reader of the run's file at this path."""

    def reader(run: RunState, data: bytes) -> Any:
        replace(run, path, data)
        return read(run)

    return reader


def read_request(run: RunState, data: bytes) -> Any:
    """Return the request. If it can't be read, one note names its file."""
    replace(run, REQUESTED, data)
    notes: list[str] = []
    request = pending_stop(run, notes.append)
    assert [REQUESTED in note for note in notes] == ([] if request else [True])
    return request


def request_may(case: Attack) -> bool | None:
    refused = case.what == "deep" or case.place[0] in ("at", "kind", "format")
    return False if refused else None


def read_rental(run: RunState, data: bytes) -> Any:
    replace(run, NOTE, data)
    note, version = read_rental_note(run)
    assert version is not None
    return note


def deadline_may(case: Attack) -> bool:
    return is_text(case) or is_missing(case, "asked") or is_null(case, "at", "asked", "hours")


def watched_may(case: Attack) -> bool:
    left_out = is_missing(case, "knows_deadlines", "risk_at", "saw")
    late = case.place[-1] == "slack" and case.what == "-1"
    return is_text(case) or left_out or is_null(case, "risk_at", "saw") or late


# ---------------------------------------------------------------- rows of metrics and events


def read_row(parse_row: Callable[[bytes], Any]) -> Callable[[RunState, bytes], Any]:
    """Return the reader of a row, which must be JSON again."""

    def read(run: RunState, data: bytes) -> Any:
        row = parse_row(data)
        assert row is None or json.dumps(row, allow_nan=False)
        return row

    return read


def row_may(kind: str) -> Callable[[Attack], bool | None]:
    """Return what a row may have; without its needed fields, nothing is read."""
    needed_fields = {"epoch", "at", "step" if kind == "metrics" else "event"}

    def may(case: Attack) -> bool | None:
        other_type = case.what == "wrong type" and case.place[0] not in FREE.get(kind, ())
        needed = case.place[0] in needed_fields and case.what not in ("escape", "missing")
        return False if case.what == "deep" or other_type or needed else None

    return may


RECORDS = {
    "HEAD": Record(HEAD, HEAD_IN, read_head, head_may, within=""),
    "manifest": Record(LISTED, f"store/{MANIFEST}", read_manifest, manifest_may),
    "trainer's state": Record(SAVED, f"5-1/{STATE}", read_saved, saved_may),
    "model's state": Record(MODEL_STATE, STATE, read_model, model_may),
    "evaluation": Record(
        EVALUATED, HEAD_IN, read_evaluated, evaluated_may, within="stages.evaluate.result."
    ),
    "publication": Record(
        PUBLISHED, HEAD_IN, read_published, published_may, within="stages.publish.result."
    ),
    "shared data": Record(as_json(DATA), f"{FINGERPRINT}/state.json", read_data, data_may),
    "deadline": Record(
        as_json(DUE),
        f"{NAME}/{DEADLINE}",
        read_at(DEADLINE, read_deadline),
        deadline_may,
        hidden="deadline can't be read",
    ),
    "heartbeat": Record(
        BEAT_OF_OWNER,
        BEATEN,
        read_at(BEATEN, lambda run: run.heartbeat(1)),
        lambda case: False if case.what == "deep" or case.place == ("at",) else None,
        hidden="no heartbeat",
    ),
    "request": Record(
        REQUEST,
        REQUESTED,
        read_request,
        request_may,
        shown="asked to stop",
        hidden="a request was ignored",
    ),
    "rental": Record(
        RENTAL,
        NOTE,
        read_rental,
        lambda case: is_text(case) or is_missing(case, "over"),  # it is false
        shown="machines: rented from",
    ),
    "watcher": Record(WATCHED, BEAT, read_at(BEAT, read_beat), watched_may),
    **{
        f"row of {kind}" if kind == "metrics" else f"event {kind}": Record(
            row, "", read_row(metrics_row if kind == "metrics" else event_row), row_may(kind)
        )
        for kind, row in ROWS.items()
    },
}
# The records that `pion status` reads as they are in the run's folder, by path.
IN_STATUS = {
    "heartbeat": BEATEN,
    "request": REQUESTED,
    "rental": NOTE,
    "deadline": DEADLINE,
    "watcher": BEAT,
}


def read_or_refused(record: Record, run: RunState, case: Attack) -> Any:
    """Return what is read of the attacked record; None if it is refused, with its name, or absent.

    The refusal is short, and names the place in a record that says so.
    """
    try:
        return record.read(run, case.on(record.good))
    except BadInput as error:
        text = str(error)
        assert record.where in text.partition(" ")[0], (case, text)
        assert len(text) < 500, case
        said = case.what not in ("deep", "NaN") and case.place not in NEEDED_IN_HEAD
        if record.within is not None and said:
            whole = case.what != "missing" and not record.within
            place = ".".join(map(str, case.place)) if whole else ""
            assert record.within + place in text, (case, text)
        return None
