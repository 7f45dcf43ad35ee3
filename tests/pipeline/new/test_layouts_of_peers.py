"""`pion new` takes the examples of peers' layouts as a job reads them, asks, or refuses them."""

import json
from itertools import groupby

import pytest

from pion.data.records.layouts import read_conversation
from pion.errors import BadInput
from pipeline.new.decide import decide
from pipeline.new.files import find_data
from pipeline.new.layouts import Preferences, Prompts, TextColumn, Wishes, is_chat
from pipeline.new.look import TOOLS_BYTES, look_at
from pipeline.new.read import ReadItem
from tests.support.peer_layouts import conversation_said, examples

LAYOUTS = {
    name: list(found)
    for name, found in groupby(examples(), lambda example: example.name.partition(":")[0])
}
USABLE = {
    name: usable
    for name, found in LAYOUTS.items()
    if (usable := [example for example in found if "refused" not in example.means])
}
# Of these, `pion new` says which columns it takes, and writes a copy that a job reads.
COPIED = {"axolotl/oasst_upper_case.jsonl", "hub/complex_cot.jsonl", "services/dialog.jsonl"}


def reading_of(found, folder):
    """Return how `pion new` reads these records. Raises BadInput."""
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(example.value) + "\n" for example in found))
    (reading,) = decide(find_data(file), Wishes())
    return reading


def test_what_a_job_reads_is_proposed_without_a_question(tmp_path):
    for name, found in USABLE.items():
        reading = reading_of(found, tmp_path)
        assert reading.direct, name
        if found[0].stage == "prefer":
            assert reading.layout == Preferences(), name
        elif found[0].stage == "text":
            assert reading.layout == TextColumn("text"), name
        else:
            for example in found:
                read = read_conversation(reading.usable(example.value), example.where)
                assert conversation_said(read)["messages"] == example.means["messages"], name


def test_what_a_job_refuses_is_not_proposed(tmp_path):
    for example in (one for name in LAYOUTS.keys() - COPIED for one in LAYOUTS[name]):
        if "refused" not in example.means or example.value.get("label") == 2:
            continue
        try:
            reading = reading_of([example], tmp_path)
        except BadInput:
            continue
        if reading.layout not in (Preferences(), Prompts()):  # the look refuses the record
            assert is_chat(reading.layout), reading.layout
            with pytest.raises(BadInput):
                reading.content(ReadItem(example.where, example.value, 0))


def test_rows_have_room_for_tools_and_calls(tmp_path):
    found = USABLE["ms_swift/agent.jsonl"]
    reading = reading_of(found, tmp_path)
    for example, length in zip(found, look_at(reading).lengths, strict=True):
        record = example.value
        said = sum(len(message["content"]) for message in record["messages"])
        tools = "" if record["tools"] == "null" else record["tools"]
        assert length >= 0.9 * said + len(tools) + TOOLS_BYTES * bool(tools)
