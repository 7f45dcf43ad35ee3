"""A fuzzer: good documents with random changes end no command in a bug, a hang or a full memory."""

import json
import resource
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.state.checkpoints.layout import MANIFEST, STATE
from pipeline.state.run_state import heartbeat_path
from tests.hostile.attacks import places
from tests.hostile.hostile_run import as_json, full_head, path_of, replace
from tests.hostile.in_process import pion
from tests.hostile.records import BEAT_OF_OWNER, REQUEST, SFT
from tests.hostile.rows import EVENTS, METRICS

GENERATE = ("generate", "{run}@sft", "--prompt", "a", "--max-tokens", "1")
# How much longer a command may compute, and how much more memory it may use, than with the good
# document.
SECONDS = 5.0
MEGABYTES = 200
# Examples per document.
FEW, MANY = 8, 1500

# Document → its file, and the commands that read it.
DOCUMENTS = {
    "HEAD": ("HEAD.json", (("status", "{run}", "--json"), ("checkpoints", "{run}"))),
    "manifest": (f"{SFT}/{MANIFEST}", (GENERATE, ("checkpoints", "{run}", "--verify"))),
    "config": (f"{SFT}/config.json", (("generate", "{folder}", *GENERATE[2:]),)),
    "state": (f"{SFT}/{STATE}", (("generate", "{folder}", *GENERATE[2:]),)),
    "events": ("events/1/000000.jsonl", (("status", "{run}"), ("report", "{run}"))),
    "metrics": ("metrics/sft/1/000000.jsonl", (("status", "{run}"),)),
    "heartbeat": (heartbeat_path(1), (("status", "{run}"),)),
    "request": ("requests/1.json", (("status", "{run}"),)),
}
ALLOWED = {0, 1, 2, 74}

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["../../x", "\x1b[2J", "9" * 50, "/dev/zero", "NaN", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def good(document, run):
    """Return the good document; rows are a list."""
    if document == "HEAD":
        return as_json(full_head())
    if document in ("events", "metrics"):
        return list(EVENTS.values()) if document == "events" else [METRICS]
    known = {"heartbeat": BEAT_OF_OWNER, "request": REQUEST}
    return known.get(document) or json.loads(path_of(run, DOCUMENTS[document][0]).read_text())


@st.composite
def changed(draw, document, rows):
    """Return the document with other values at a few places, and perhaps other bytes."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(0, 3))):
        found = [place for place, _ in places(document)]
        if not found:
            break
        *parents, last = draw(st.sampled_from(found))
        inner = document
        for part in parents:
            inner = inner[part]
        inner[last] = draw(VALUES)
    lines = document if rows and isinstance(document, list) else [document]
    data = "\n".join(map(json.dumps, lines)).encode()
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=8)) + data[at + draw(st.integers(0, 9)) :]
    return data


def fuzz(document, run, examples, check: Callable[[bytes], None]):
    """Call `check` with that many changed documents, always the same ones."""
    quiet = settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    rows = document in ("events", "metrics")
    quiet(given(changed(good(document, run), rows))(check))()


def go(document, run, data):
    """Run each command that reads the document."""
    path, commands = DOCUMENTS[document]
    replace(run, path, data)
    for command in commands:
        arguments = [part.format(run=run.url, folder=path_of(run, SFT)) for part in command]
        ended = pion(*arguments, memory=None)
        assert ended.code in ALLOWED, (data, ended)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_changed_documents_end_no_command_in_a_bug(document, restored):
    fuzz(document, restored, FEW, lambda data: go(document, restored, data))


@pytest.mark.soak
@pytest.mark.parametrize("document", DOCUMENTS)
def test_many_changed_documents_cost_little_time_and_memory(document, restored):
    data = good(document, restored)
    lines = data if document in ("events", "metrics") else [data]
    whole = "\n".join(map(json.dumps, lines)).encode()
    go(document, restored, whole)
    began = time.process_time()
    go(document, restored, whole)
    usual, used = time.process_time() - began, _peak_megabytes()

    def check(data):
        began = time.process_time()
        go(document, restored, data)
        assert time.process_time() - began <= usual + SECONDS, data
        assert _peak_megabytes() <= used + MEGABYTES, data

    fuzz(document, restored, MANY, check)


def _peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
