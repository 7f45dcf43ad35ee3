"""Files of preferences as they should not be: refused with one message, or left out and counted.

Each file has 40 good pairs and, in line 21, one that is not. A refusal names the file and the line.
"""

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow.parquet
import pytest

from pion.data.preference.rendering import (
    EMPTY,
    IDENTICAL,
    LONGER_THAN_CONTEXT,
    LONGER_THAN_ROW,
    TIE,
)
from pion.errors import BadInput
from pipeline.job import JsonlFiles, ParquetFiles
from tests.hostile.in_process import little_memory
from tests.support.chat_templates import CHATML
from tests.support.preference_files import label_of, pair_of, sequences_in, write_jsonl, write_rows

pytestmark = pytest.mark.usefixtures("quick_renderer")

GOOD = 40
LINE = 21
FORMATS = [None, ("smollm2", CHATML)]


def said(text):
    return {"role": "assistant", "content": text}


def line(record):
    return json.dumps(record).encode()


def odd(**changes):
    """Return a good pair's line with some keys replaced."""
    return line(pair_of(999, **changes))


def write_with(folder, odd_line, good: Callable[[int], Any] = pair_of):
    """Write the good lines, and the odd one as line 21."""
    lines = [line(good(n)) for n in range(GOOD)]
    lines.insert(LINE - 1, odd_line)
    (folder / "prefs.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def rows_of(folder, template=None, **how):
    with little_memory():
        return write_rows(folder, template=template, **{"seq_len": 512, "context": 256} | how)


# ---------------------------------------------------------------- refused

# tests/pion/data/preference/test_layouts.py has more records that are no preference.
REFUSED = {
    "no JSON": b"{'prompt': 'single quotes'}",
    "half a line": odd()[:40],
    "a list": line([pair_of(1)]),
    "null": b"null",
    "not UTF-8": b'{"prompt": "\xff\xfe", "chosen": "a", "rejected": "b"}',
    "nested 100,000 deep": b'{"chosen": ' + b"[" * 100_000,
    "5,000 digits": b'{"prompt": "a", "chosen": "b", "rejected": ' + b"9" * 5000 + b"}",
    "one key twice": b'{"prompt": "a", "chosen": "b", "chosen": 5, "rejected": "b"}',
    "a truth": odd(rejected=True),
    "a list of null": odd(chosen=[None]),
    "a message with a list as role": odd(chosen=[{"role": ["assistant"], "content": "a"}]),
    "an unknown role": odd(chosen=[{"role": "robot\u001b[2J", "content": "a"}]),
    "content of another type": odd(chosen=[said({"text": "a"})]),
    "a prompt of null without lists": odd(prompt=None),
    "an empty list as prompt": odd(prompt=[]),
    "a transcript that begins with Assistant": odd(
        prompt=None, chosen="\n\nAssistant: a", rejected="\n\nAssistant: b"
    ),
    "an infinite score": odd(score_chosen=1, score_rejected=float("inf")),
    "an answer with a label among pairs": line(label_of(1)),
    "a huge line": b'{"prompt": "' + b"x" * 17_000_000 + b'"}',
}


LABELS = {
    "null": line({**label_of(1), "label": None}),
    "a list": line({**label_of(1), "label": [True]}),
    "nobody asked": line({**label_of(1), "prompt": [said("a")]}),
    "a pair": line(pair_of(1)),
}
# The line, and what makes the good lines around it.
BAD_LINES = {
    **{name: (bad, pair_of) for name, bad in REFUSED.items()},
    **{f"label: {name}": (bad, label_of) for name, bad in LABELS.items()},
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_line_that_is_no_pair_or_has_no_label_ends_the_preparation_with_its_place(tmp_path, name):
    write_with(tmp_path, *BAD_LINES[name])
    with pytest.raises(BadInput) as error:
        rows_of(tmp_path)
    message = str(error.value)
    assert message.count(f"{tmp_path}/prefs.jsonl:{LINE}") == 1
    assert len(message) < 1000
    assert message.isprintable()


# ---------------------------------------------------------------- left out and counted

WORD = pair_of(7)["chosen"].split()[0]
DROPPED = {
    "an empty answer": (odd(chosen=""), EMPTY),
    "a blank answer": (odd(rejected=" \t\n\u3000"), EMPTY),
    "an answer of null": (odd(chosen=[said(None)]), EMPTY),
    "equal answers": (odd(chosen="a", rejected="a"), IDENTICAL),
    "answers equal up to space": (odd(chosen=" a", rejected="a \n"), IDENTICAL),
    "equal scores": (odd(score_chosen=7, score_rejected=7.0), TIE),
    "a status of tie": (odd(status="tie"), TIE),
    "a long answer": (odd(rejected=f"{WORD} " * 2000), LONGER_THAN_CONTEXT),
    "10 MB without a space": (odd(chosen="x" * 10_000_000), LONGER_THAN_CONTEXT),
    "10 MB of spaces within": (odd(chosen="a" + " " * 10_000_000 + "b"), LONGER_THAN_CONTEXT),
    "both answers a bit too long": (
        odd(chosen=" ".join("0123456789" * 18), rejected=" ".join("9876543210" * 18)),
        LONGER_THAN_ROW,
    ),
}


@pytest.mark.parametrize("name", DROPPED)
def test_a_pair_that_teaches_nothing_is_left_out_and_counted(tmp_path, name):
    odd_line, reason = DROPPED[name]
    write_with(tmp_path, odd_line)
    context = 512 if reason == LONGER_THAN_ROW else 256
    summary = rows_of(tmp_path, seq_len=512, context=context)
    assert summary.tally.dropped == {reason: 1}
    assert summary.tally.read == GOOD + 1
    assert summary.train.items + summary.held_out.items == GOOD


# ---------------------------------------------------------------- used

USED = {
    "chosen begins rejected": {"chosen": "a", "rejected": "a b"},
    "rejected begins chosen": {"chosen": "a b", "rejected": "a"},
    "they differ in one character": {"chosen": "Yes.", "rejected": "Yes!"},
    "half a character": {"chosen": "a \ud83d", "rejected": "b"},
    "NUL": {"chosen": "a\u0000b", "rejected": "b"},
    "a terminal escape": {"chosen": "\u001b[2J", "rejected": "b"},
    "right to left": {"chosen": "\u202eabc", "rejected": "b"},
    "combining characters": {"chosen": "e\u0301" * 9, "rejected": "\u0301"},
    "the end of a text, spelled out in rejected": {"rejected": "b<|endoftext|>c"},
    "the end of a turn, spelled out in rejected": {"rejected": "b<|im_end|>\n<|im_start|>user\nc"},
    "the end of a turn, spelled out in the prompt": {"prompt": "Hi<|im_end|>", "chosen": "a"},
    "marks of Pion's own format": {"rejected": "b\n<|assistant|>\nc"},
    "a huge score": {"score_chosen": 10**400, "score_rejected": -1},
    "scores of null": {"score_chosen": None, "score_rejected": None},
    "other keys": {"messages": 5, "label_": [], "": None, "chosen_": {}},
    "a template": {"chosen": "{{ raise_exception('no') }}", "rejected": "{% for %}"},
    "Human and Assistant within": {"chosen": "a\n\nHuman: b\n\nAssistant: c"},
}


@pytest.mark.parametrize("template", FORMATS, ids=["own", "template"])
@pytest.mark.parametrize("name", USED)
def test_odd_pairs_are_used_and_no_text_ends_a_turn(tmp_path, name, template):
    write_with(tmp_path, odd(**USED[name]))
    summary = rows_of(tmp_path, template, seq_len=1024, context=512)
    assert summary.tally.dropped == {}
    assert summary.train.items + summary.held_out.items == GOOD + 1
    end = "<|endoftext|>" if template is None else "<|im_end|>"
    for split in ("train", "held_out"):
        for prompt, answer, _ in sequences_in(tmp_path, split):
            assert answer.count(end) == 1
            assert answer.endswith(end)
            assert not (template is None and end in prompt)


# ---------------------------------------------------------------- whole files


def test_swapped_keys_are_found_by_their_scores(tmp_path):
    records = [pair_of(n, score_chosen=1, score_rejected=2) for n in range(GOOD)]
    write_jsonl(tmp_path / "prefs.jsonl", records)
    with pytest.raises(BadInput) as error:
        rows_of(tmp_path)
    assert "in 40 of 40 pairs with scores, the chosen answer has the lower" in str(error.value)
    assert f"(the first: {tmp_path}/prefs.jsonl:1)" in str(error.value)


@pytest.mark.parametrize("change", [{"status": "tie"}, {"chosen": ""}, {"rejected": "x" * 9000}])
def test_a_file_of_which_nothing_is_left_is_refused_with_the_reason(tmp_path, change):
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(n, **change) for n in range(3)])
    with pytest.raises(BadInput, match="3 of 3 pairs are left out, more than 50%: 3, because"):
        rows_of(tmp_path)


def test_one_pair_is_trained_on_or_refused(tmp_path):
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(1)])
    assert rows_of(tmp_path, held_out=0.0).train.items == 1
    with pytest.raises(BadInput, match="none of 1 pairs is left to train on: 1 are held out"):
        rows_of(tmp_path, held_out=1.0, out="held_out")


def table(**columns):
    """Return a parquet file with these columns."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


NO_COLUMNS = table(text=["a"], better=["b"])
# What is written to prefs.SUFFIX, and why the file is refused.
FILES = {
    "empty": ("jsonl", b"", r"prefer\.sources\.0: the corpus is empty"),
    "blank": ("jsonl", b"\n\n  \n", r"prefer\.sources\.0: the corpus is empty"),
    "missing": ("jsonl", None, r"prefer\.sources\.0\.path: no such file or folder"),
    "a bomb": (
        "jsonl.gz",
        gzip.compress(b'{"prompt": "' + b"x" * 20_000_000, 1),
        "the line has more than 16,000,000 bytes",
    ),
    "no parquet": ("parquet", b"PAR1" * 9, "not a readable parquet file"),
    "columns": ("parquet", NO_COLUMNS, r"row 1: not a preference.*found 'better', 'text'"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_pairs_is_refused_with_the_reason(tmp_path, name):
    suffix, content, reason = FILES[name]
    if content is not None:
        (tmp_path / f"prefs.{suffix}").write_bytes(content)
    kind = ParquetFiles if suffix == "parquet" else JsonlFiles
    source = kind.model_validate({"kind": suffix.partition(".")[0], "path": f"prefs.{suffix}"})
    with pytest.raises(BadInput, match=reason):
        rows_of(tmp_path, source=source)
