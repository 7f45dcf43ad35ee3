"""Messages arrive between processes as they were sent, and anything else is refused."""

import ast
import functools

import pytest

from pipeline.console.messages import (
    _BY_NAME,
    CheckpointSaved,
    Evaluation,
    Hello,
    MachineNotice,
    Note,
    Phase,
    PrepareProgress,
    Sample,
    SaveAndStop,
    StageState,
    Step,
    Summary,
    Trained,
    WorkerFailed,
    WorkerStarted,
    from_json,
    to_json,
)
from tests.paths import REPOSITORY

MESSAGES = [
    Phase("boot", 60.5, parts={"install": 20.5}),
    Phase("first step", 31.5, total=True),
    PrepareProgress("tokenising", 3, "MB", total=4.5),
    StageState("sft", "started", "continues after step 20", steps=60),
    Step("pretrain", 1, 2, loss=3.2, lr=0.02, tokens_per_second=4120.4, memory=12),
    Evaluation("sft", 4, loss=2.5, loss_sem=0.1),
    Sample("sft", 4, prompt="Once", text="upon\na time"),
    CheckpointSaved("pretrain", 100, saved=3, stall=0.25, write=1.5, interval=90.0),
    Note("the store can be reached again"),
    Summary([["model", "models/demo"]]),
    Hello("secret", 3),
    WorkerStarted(123),
    Trained("done"),
    WorkerFailed({"class": "BadInput", "fields": {"text": "no"}}),
    MachineNotice("the machine of worker 1: AWS will take this machine in 118 s", 118.0),
    SaveAndStop(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message):
    line = to_json(message)
    assert "\n" not in line
    assert from_json(line) == message


def test_every_message_is_tried_above():
    assert {type(message).__name__ for message in MESSAGES} == set(_BY_NAME)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "not json",
        "[]",
        "{}",
        '{"type": "stpe"}',
        '{"type": ["Note"]}',
        '{"type": "Note"}',
        '{"type": "Note", "text": "a", "more": 1}',
    ],
)
def test_anything_else_is_refused(line):
    with pytest.raises(ValueError):  # noqa: PT011
        from_json(line)


def test_an_unknown_message_is_a_mistake_of_the_sender():
    with pytest.raises(ValueError, match="no message type 'stpe'"):
        from_json('{"type": "stpe"}')


# ---------------------------------------------------------------- nobody else makes or takes one


@functools.cache
def sources():
    folders = (REPOSITORY / "pipeline", REPOSITORY / "pion")
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    assert len(files) > 200
    return {str(path.relative_to(REPOSITORY)): path.read_text() for path in files}


def nodes(having):
    """Yield the nodes of all files that have this text. To parse all files takes seconds."""
    for name, text in sources().items():
        for node in ast.walk(ast.parse(text)) if having in text else ():
            yield name, node


def test_only_the_codec_writes_a_message_as_a_dict():
    found = [
        f"{name}:{node.lineno}"
        for name, node in nodes('"type"')
        # The objects of OpenAI's API, and the calls of tools in data, also have a "type".
        if isinstance(node, ast.Dict) and not name.startswith(("pipeline/serve/", "pion/data/"))
        for key in node.keys
        if isinstance(key, ast.Constant) and key.value == "type"
    ]
    assert [place.partition(":")[0] for place in found] == ["pipeline/console/messages.py"], found


def test_nothing_is_dispatched_by_a_name_put_together():
    found = [
        f"{name}:{node.lineno}"
        for name, node in nodes("getattr")
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and not isinstance(node.args[1], ast.Constant | ast.Name | ast.Attribute)
    ]
    assert found == []
