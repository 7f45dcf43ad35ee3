"""What the records of a source have and the model will not learn is said, with how often."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from pion.data.tokens.token_bytes import ReplacedCharacters
from pipeline.data.preferences import preferences
from pipeline.data.remarks import NAMED, Remarks, shortened
from pipeline.data.sources import conversations, find_input
from pipeline.job import JsonlFiles, ParquetFiles
from tests.support.jobs import tiny_job

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]


def remarks_on(folder, records, stage="sft"):
    if stage == "table":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / "data.parquet")
        source = ParquetFiles(kind="parquet", path="data.parquet")
    else:
        (folder / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
        source = JsonlFiles(kind="jsonl", path="data.jsonl")
    job = tiny_job()
    job._folder = folder
    found = find_input(job, source, "sources.0")
    remarks = Remarks(ReplacedCharacters(None))
    if stage == "prefer":
        assert len(list(preferences(job, found, remarks))) == len(records)
    else:
        assert len(list(conversations(job, found, own=True, remarks=remarks))) == len(records)
    return remarks


@pytest.mark.parametrize("stage", ["sft", "table"])
def test_keys_that_are_not_read_are_named_with_how_many_records_have_them(tmp_path, stage):
    records = [{"messages": TURNS, "id": 1, "source": "a"}, {"messages": TURNS, "id": 2}]
    (said,) = remarks_on(tmp_path, records, stage).in_words()
    # Of a table, a column that is not read is not looked into.
    sources = 2 if stage == "table" else 1
    assert said == (f"not read: 'id' (2 of 2 records), 'source' ({sources} of 2 records)")


def test_what_is_read_and_what_is_empty_is_not_said(tmp_path):
    record = {"messages": TURNS, "system": "Be brief.", "tools": [], "label": None, "images": []}
    remarks = remarks_on(tmp_path, [record])
    assert (remarks.in_words(), remarks.warnings()) == ([], [])


@pytest.mark.parametrize(
    "key", ["history", "weight", "train", "label", "instruction", "thinking", "rejected_response"]
)
def test_a_key_that_means_something_and_is_not_read_is_a_warning(tmp_path, key):
    remarks = remarks_on(tmp_path, [{"messages": TURNS, key: "x"}, {"messages": TURNS}])
    assert remarks.in_words() == []
    assert remarks.warnings() == [f"not read: {key!r} (1 of 2 records)"]


def test_a_second_system_message_is_not_read_and_said(tmp_path):
    told = {"messages": [{"role": "system", "content": "Be brief."}, *TURNS], "system": "Be long."}
    assert remarks_on(tmp_path, [told]).warnings() == ["not read: 'system' (1 of 1 records)"]


def test_which_columns_have_the_question_and_the_answer_is_said(tmp_path):
    records = [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Hi", "input": "", "output": "Yes"},
        {"instruction": "And?", "history": [["Hi", "Yes"]], "output": "No"},
    ]
    assert remarks_on(tmp_path, records).in_words() == [
        "the question is in instruction with input below it, the answer in output (1 of 3 records)",
        "the question is in instruction, the answer in output (1 of 3 records)",
        "the question is in instruction after history, the answer in output (1 of 3 records)",
    ]


def test_preferences_say_it_too(tmp_path):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "id": 7, "weight": 2}
    remarks = remarks_on(tmp_path, [pair], "prefer")
    assert remarks.in_words() == ["not read: 'id' (1 of 1 records)"]
    assert remarks.warnings() == ["not read: 'weight' (1 of 1 records)"]


def test_of_very_many_keys_the_first_are_named(tmp_path):
    record = {"messages": TURNS, **{f"k{number}": 1 for number in range(NAMED + 3)}}
    (said,) = remarks_on(tmp_path, [record]).in_words()
    assert said.count("'k") == NAMED
    assert said.endswith(" and 3 more")


DROPPED = "{} of 100 conversations are dropped, because no answer begins within a row of 64 tokens"
CUT = "{} of 100 conversations are longer than a row of 64 tokens and lose their end"
ADVICE = "With sft.seq_len=128, 95% of them are whole, and the model's context must be as long"


@pytest.mark.parametrize(
    ("dropped", "cut", "fits", "said", "many"),
    [
        (0, 0, 64, [], False),
        (5, 0, 64, [DROPPED.format(5)], False),
        (6, 0, 128, [DROPPED.format(6), ADVICE], True),
        (0, 50, 128, [CUT.format(50), ADVICE], False),
        (1, 50, 128, [DROPPED.format(1), CUT.format(50), ADVICE], True),
    ],
)
def test_conversations_that_rows_do_not_hold_are_a_warning_if_they_are_many(
    dropped, cut, fits, said, many
):
    counts = {"conversations": 90 - dropped, "dropped": dropped, "cut": cut, "fits": fits}
    report = {f"train_{name}": count for name, count in counts.items()}
    report |= {"held_out_conversations": 10, "held_out_dropped": 0, "held_out_cut": 0}
    report["held_out_fits"] = 64
    words = ". ".join(said)
    assert shortened(report, 64, "train", "held_out") == (words, many)
    assert shortened(dict.fromkeys(report, 0), 64, "train") == ("", False)
