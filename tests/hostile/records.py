"""The records that others may have written, for the tests that attack them: a good document of
each, its reader, and which attacks leave values that it may have.

A record that is attacked has its place in `RECORDS`. The attacks are those of attacks.py.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from pion.data.shards import Manifest, Shard
from pion.errors import BadInput
from pion.evaluation.questions import read_questions
from pion.train.settings import ComputePlan
from pipeline.data.prepared import DATASET, open_data
from pipeline.models.find import find_model
from pipeline.report.blocks import Table
from pipeline.report.result_tables import result_blocks
from pipeline.report.results import Evaluated, Published, result_of
from pipeline.state.checkpoints.layout import MANIFEST, STATE, Provenance
from pipeline.state.head import Head, StageRecord
from pipeline.state.notes.deadline import DEADLINE, Asked, RunDeadline, read_deadline
from pipeline.state.notes.rental_note import NOTE, RentalNote, read_rental_note
from pipeline.state.notes.stop_requests import pending_stop
from pipeline.state.notes.watcher_beat import BEAT, read_beat
from pipeline.state.owner import Author
from pipeline.state.record_json import build, parse, parse_record
from pipeline.state.rows.row_types import event_row, metrics_row
from pipeline.state.run_state import RunState, heartbeat_path
from pipeline.state.shared.records import DataState, Unneeded, Writer, read_state, state_key
from pipeline.state.workspace import read_files
from pipeline.training.setup import SavedState
from tests.hostile.attacks import ALL_ATTACKS, ATTACKS, HALF, LONG, TEXTS, Attack, attacks_on
from tests.hostile.hostile_run import NAME, NOW, as_json, full_head, path_of, replace
from tests.hostile.of_types import SHA256, example, fits
from tests.hostile.rows import FREE, ROWS
from tests.support.jobs import tiny_job

# Places in a document by the attacks after which it is still read; or, given an attack, whether it
# is (None: either).
May = Mapping[str | tuple[str, ...], str] | Callable[[Attack], bool | None]


@dataclass(frozen=True)
class Record:
    """A record that others may have written.

    Attributes:
        good: a document with every field.
        where: the end of its name, which its refusal says.
        read: returns what is read of the bytes in a run; None if the record can't be read and is a
            courtesy, which then counts as absent. Raises BadInput.
        may: which attacks leave values that the record may have.
        within: what the refusal says before the place in the document; empty: it says the whole
            place; None: it says no place.
        shown: the words of `pion status` if the record can be read; None: the command reads more
            of it than `read`, or nothing.
        hidden: the words of `pion status` if it can't be read.
        attacks: what stands at each place of the document.
    """

    good: Any
    where: str
    read: Callable[[RunState, bytes], Any]
    may: May
    within: str | None = None
    shown: str | None = None
    hidden: str = ""
    attacks: tuple[str, ...] = ATTACKS

    def cases(self) -> list[Attack]:
        """Return all attacks on the record."""
        return attacks_on(self.good, self.attacks)

    def allows(self, case: Attack) -> bool | None:
        """Return whether the record may have the attack's value; None: either."""
        if callable(self.may):
            return self.may(case)
        return any(
            case.path in places.split()
            for attacks, places in self.may.items()
            if case.what in ((attacks,) if isinstance(attacks, str) else attacks)
        )


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
    if case.place == ("format",) or (case.place in NEEDED_IN_HEAD and case.what == "missing"):
        return False
    return is_of_type(Head, HEAD, case)


def is_of_type(kind: Any, good: Any, case: Attack) -> bool:
    """Return whether the attacked document is JSON, and of this type."""
    return case.what not in ("deep", "NaN") and fits(kind, json.loads(case.on(good)))


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
PLAN = dataclasses.asdict(ComputePlan(micro_batch=4, threads=1, rollout_rows=2))
OF_PLAN = [f"plan.{name}" for name in PLAN]
SAVED: dict[str, Any] = {
    "step": 5,
    "next_row": 20,
    "skipped": [[0, 4]],
    "recent_losses": [2.5],
    "optimizer": {"steps": 5},
    "rng": {"cpu": "AAAA"},
    "plan": PLAN,
}
MODEL_STATE: dict[str, Any] = {"stage": "sft", "step": 5, "tokenizer": "data/1234/tokenizer.json"}


def read_manifest(run: RunState, data: bytes) -> Any:
    build(Provenance, parse(data, f"store/{MANIFEST}"), f"store/{MANIFEST}")
    return read_files(data, f"store/{MANIFEST}")


def read_saved(run: RunState, data: bytes) -> bool:
    build(SavedState, parse_record(data, f"5-1/{STATE}"), f"5-1/{STATE}")
    return True


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


# ---------------------------------------------------------------- results

MEASURED = example(Evaluated, 3)
ASKED = {
    "form": "chat",
    "shots": 5,
    "version": "1.0",
    "lm_eval": "0.4.13",
    "fewshot_seed": 1234,
    "questions": 20,
    "of": 40,
    "cropped": 0.5,
    "until": ["Question:"],
    "max_gen_toks": 256,
    "cut_off": 0.25,
}
LANGUAGE = ("loss", "loss_sem", "perplexity", "bits_per_byte", "bits_per_byte_sem")
ANSWERS = ("response_loss", "response_loss_sem", "stop_accuracy", "stop_accuracy_sem")


def part_of(model: str, *names: str) -> dict[str, Any]:
    """Return some of what is measured of a model. test_results.py has all of it."""
    return {name: MEASURED[model][name] for name in names}


EVALUATED: dict[str, Any] = {
    "pretrain": part_of("pretrain", *LANGUAGE, "calibration", "continuations"),
    "sft": part_of("sft", *ANSWERS, "bits_per_byte", "packs"),
    "untrained": part_of("untrained", "loss"),
    "ngram": part_of("ngram", "order", "loss", "train_tokens"),
    "lm_eval": {"arc_easy": {"acc,none": 0.3, "acc_stderr,none": 0.01, "asked": ASKED}},
    "base": part_of("base", "response_loss") | {"text": part_of("base", *LANGUAGE[3:])},
    "change": part_of("change", *ANSWERS[:2]) | {"text": part_of("change", "bits_per_byte")},
    **{name: MEASURED[name] for name in ("compared_text", "checkpoint", "normalization")},
}
PUBLISHED: dict[str, Any] = {
    "parameters": 6336,
    "url": "https://huggingface.co/u/m",
    "path": "published",
    "card": "published/README.md",
}


def with_result(stage: str, data: bytes) -> Head:
    """Return a HEAD that was read with this result."""
    head = json.dumps(dataclasses.asdict(Head(stages={stage: StageRecord("d", NOW)}))).encode()
    return Head.from_json(head.replace(b'"result": {}', b'"result": ' + data), HEAD_IN)


def read_evaluated(run: RunState, data: bytes) -> bool:
    """Return True if the evaluation can be shown, as text."""
    results: Any = result_of(Evaluated, with_result("evaluate", data), "evaluate", "store/demo")
    for block in result_blocks(tiny_job(), results):
        rows = block.rows if isinstance(block, Table) else [[block]]
        assert all(isinstance(cell, str) for row in rows for cell in row)
    return True


def read_published(run: RunState, data: bytes) -> Any:
    return result_of(Published, with_result("publish", data), "publish", "store/demo")


# ---------------------------------------------------------------- data

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
REMOTE = {"repo": "user/data", "revision": "abc", "path": "x/a.npy"}
SHARD = Shard("a.npy", 3, SHA256, 100, "uint16", 1, SHA256, 50, REMOTE)
ROWS_OF_DATA = Manifest("tokens", 8, 100, (SHARD,), pad=1, records=SHA256)
ROWS_LISTED = {"format": 1, "fingerprint": FINGERPRINT, **as_json(ROWS_OF_DATA)}
SOURCE = {"kind": "text", "weight": 1.0, "folder": "0"}
DATA_SET = {"part": "pretrain", "sources": [SOURCE], "report": {}}
QUESTION = {"context": "Return a", "choices": [" new", " jumps"], "answer": 0}


def read_data(run: RunState, data: bytes) -> DataState:
    run.store.write(state_key(FINGERPRINT), data)
    try:
        return read_state(run.store, FINGERPRINT)[0]
    finally:
        run.store.delete(state_key(FINGERPRINT))


def read_rows_listed(run: RunState, data: bytes) -> Manifest:
    """Read a manifest with a fingerprint that fits: anyone can write one."""
    replace(run, "data/manifest.json", data)
    with patch.object(Manifest, "fingerprint", FINGERPRINT):
        return Manifest.read(path_of(run, "data/manifest.json"))


def read_data_set(run: RunState, data: bytes) -> Any:
    replace(run, "data/tokenizer.json", b"{}")
    replace(run, f"data/{DATASET}", data)
    return open_data(path_of(run, "data"))


def read_question(run: RunState, data: bytes) -> Any:
    replace(run, "pack.jsonl", json.dumps(QUESTION).encode() + b"\n" + data + b"\n")
    questions = read_questions(path_of(run, "pack.jsonl"))
    return questions if len(questions) == 2 else None  # a blank line is none


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


def read_rental(run: RunState, data: bytes) -> Any:
    replace(run, NOTE, data)
    note, version = read_rental_note(run)
    assert version is not None
    return note


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
    "manifest": Record(
        LISTED,
        f"store/{MANIFEST}",
        read_manifest,
        {
            "escape": "stage digest ancestor",
            "null": "ancestor",
            "missing": "files.model.safetensors files.state.json",
        },
    ),
    "trainer's state": Record(
        SAVED,
        f"5-1/{STATE}",
        read_saved,
        {
            "escape": "rng.cpu plan.device",
            "null": "plan.threads plan.rollout_rows",
            ("1e300", "-1"): "recent_losses.0",
            "missing": " ".join(("skipped.0 recent_losses recent_losses.0 rng.cpu", *OF_PLAN)),
        },
    ),
    "model's state": Record(
        MODEL_STATE,
        STATE,
        read_model,
        {
            ("wrong type", "1e300", "-1"): "step",
            "escape": "stage step",
            "null": "step tokenizer",
            "missing": "stage step tokenizer",
        },
    ),
    "evaluation": Record(
        EVALUATED,
        HEAD_IN,
        read_evaluated,
        lambda case: is_of_type(Evaluated, EVALUATED, case),
        within="stages.evaluate.result.",
    ),
    "publication": Record(
        PUBLISHED,
        HEAD_IN,
        read_published,
        {("null", "escape"): "url path card", "missing": "parameters url path card"},
        within="stages.publish.result.",
    ),
    "shared data": Record(
        as_json(DATA),
        f"{FINGERPRINT}/state.json",
        read_data,
        {
            "escape": "sources.0 writer.session writer.host",
            "null": "folder writer writer.replaces delete_after",
            "missing": "folder bytes at sources sources.0 writer writer.replaces delete_after "
            "unneeded unneeded.0 deleted deleted.0",
        },
    ),
    "manifest of rows": Record(
        ROWS_LISTED,
        "data/manifest.json",
        read_rows_listed,
        {
            # What older manifests lack.
            "missing": "shards.0 shards.0.start shards.0.flags_sha256 shards.0.flags_bytes "
            "shards.0.remote pad info records",
            "null": "shards.0.flags_sha256 shards.0.remote pad records",
            "an object": "info",
            # The Hub's client checks the names of repositories.
            TEXTS: "shards.0.remote.repo shards.0.remote.revision",
            LONG: "shards.0.name",
            ("escape", "a text", "NUL", LONG): "shards.0.remote.path",
        },
        attacks=ALL_ATTACKS,
    ),
    "data set": Record(
        DATA_SET,
        f"data/{DATASET}",
        read_data_set,
        {
            TEXTS: "sources.0.kind",  # only a label
            "missing": "sources.0",
            "2 ** 63": "sources.0.weight",
            LONG: "sources.0.folder",
            "an object": "report",
        },
        attacks=ALL_ATTACKS,
    ),
    "question": Record(
        QUESTION,
        "pack.jsonl:2",
        read_question,
        {(HALF, *TEXTS): "context", (HALF, *TEXTS[:-1]): "choices.0"},
        attacks=ALL_ATTACKS,
    ),
    "deadline": Record(
        as_json(DUE),
        f"{NAME}/{DEADLINE}",
        read_at(DEADLINE, read_deadline),
        {"escape": "by.host by.user how", "null": "at asked asked.hours asked.at"}
        | {"missing": "asked"},
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
        {"escape": "by.host by.user reason except_launch", ("null", "missing"): "except_launch"},
        shown="asked to stop",
        hidden="a request was ignored",
    ),
    "rental": Record(
        RENTAL,
        NOTE,
        read_rental,
        {"escape": "host rented_from launch_id", "missing": "over"},  # it is false
        shown="machines: rented from",
    ),
    "watcher": Record(
        WATCHED,
        BEAT,
        read_at(BEAT, read_beat),
        {"escape": "by.host by.user pion saw.state", "null": "risk_at saw", "-1": "saw.slack"}
        | {"missing": "knows_deadlines risk_at saw"},
    ),
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


def read_or_refused(record: Record, run: RunState, data: bytes) -> tuple[Any, str]:
    """Return what is read of a record, and "". If it is refused: None, and the message, which is
    short and names the file. A courtesy that can't be read is None without a message."""
    try:
        return record.read(run, data), ""
    except BadInput as error:
        message = str(error)
    assert record.where in message.partition(" ")[0], message
    assert len(message) < 500, message
    return None, message


def attacked(record: Record, run: RunState, case: Attack) -> Any:
    """Return what is read of the attacked record; None if it is refused, or absent."""
    found, message = read_or_refused(record, run, case.on(record.good))
    names_it = case.what not in ("deep", "NaN") and case.place not in NEEDED_IN_HEAD
    if message and record.within is not None and names_it:
        whole = case.what != "missing" and not record.within
        assert record.within + (case.path if whole else "") in message, (case, message)
    return found
