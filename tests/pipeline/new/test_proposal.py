"""`pion new` on preferences: the job that it writes, what it prints, and what it refuses."""

import csv
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.job_with_base import read_job
from pipeline.rent.check.command import run_checks
from pipeline.rent.check.data import check_rows
from tests.pipeline.new.conftest import made, refused
from tests.support import own_data
from tests.support.preference_files import label_of, pair_of, write_jsonl


def messages_of(number):
    pair = pair_of(number)
    prompt = {"role": "user", "content": pair["prompt"]}
    return {
        side: [prompt, {"role": "assistant", "content": pair[side]}]
        for side in ("chosen", "rejected")
    }


def numbered_of(number):
    labelled = label_of(number)
    return {**labelled, "label": int(labelled["label"])}


# One layout of pairs, and one of labels. test_layouts_of_peers.py has the others.
LAYOUTS = {
    "implicit": (messages_of, "dpo-norm"),
    "labels that are numbers": (numbered_of, "apo-zero"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_job_for_each_layout_passes_the_check_of_its_preferences(
    layout, here, pion, sky_home, chat_base
):
    record_of, loss = LAYOUTS[layout]
    data = write_jsonl(here / "prefs.jsonl", map(record_of, range(200)))
    job, printed = made(pion, data, "--from", str(chat_base))
    assert job.train_stages == ["prefer"]
    assert job.prefer is not None
    assert job.prefer.loss == loss
    rows = {row.name: row.words for row in check_rows(job)}
    assert "left out" not in rows["preferences"], "every pair fits into a row"
    assert "batch" not in rows or "512 are usual" in rows["batch"]
    assert printed.count("⟦") == (3 if loss == "dpo-norm" else 2)
    assert re.search(r"price          (<\$0\.01|\$0\.\d\d): about \d+ min on ", printed)
    assert "note: read when this is not worth it" in printed


def test_it_says_what_the_pairs_will_teach(here, pion, sky_home, chat_base):
    longer = [pair_of(n, chosen="a much longer answer " * 9) for n in range(40)]
    odd = [
        pair_of(41, chosen="same", rejected="same"),
        pair_of(42, score_chosen=1, score_rejected=1),
    ]
    write_jsonl(here / "prefs.jsonl", [*longer, *odd])
    code, printed, _ = pion("new", "prefs.jsonl", "--from", str(chat_base), "--dry-run")
    assert code == 0
    assert not (here / "prefs.yaml").exists()
    assert "42 preferences, " in printed
    assert "the chosen answer is longer in 100% of the pairs" in printed
    for why in ("chosen and rejected are the same tokens", "chosen and rejected are equally good"):
        assert re.search(f"left out: .*1, because {why}", printed)
    assert "warning: the chosen answer is the longer one in 100% of the pairs: the" in printed
    assert "note: 42 preferences are few" in printed


def called(number):
    """A call of a tool, without a text."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": number}}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def with_a_call(number):
    pair = messages_of(number)
    return {**pair, "chosen": [pair["chosen"][0], called(number)]}


PAIRS = [pair_of(number) for number in range(40)]
SWAPPED = [pair_of(number, score_chosen=1, score_rejected=2) for number in range(40)]
# By the name of a file: its records.
Files = dict[str, list[dict[str, Any]]]


def written(files):
    """Write files into `data`, or one beside it."""
    if len(files) == 1:
        ((name, records),) = files.items()
        return write_jsonl(Path.cwd() / name, records)
    folder = Path.cwd() / "data"
    folder.mkdir()
    for name, records in files.items():
        write_jsonl(folder / name, records)
    return folder


@pytest.mark.usefixtures("no_price_is_asked")
@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([*map(messages_of, range(30)), with_a_call(30)], "p.jsonl:31: answer 1 calls 'add'"),
        (SWAPPED, "lower score"),
        (PAIRS[:1], "prefer"),
        ([PAIRS[1], label_of(2)], "p.jsonl:2: found an answer with a label, but p.jsonl:1 has"),
        (
            [pair_of(1, chosen="")],
            "1 of 1 pairs are left out, more than 50%: 1, because an answer is empty. Correct",
        ),
    ],
)
def test_what_check_would_refuse_is_refused_before_prices_are_asked(
    records, expected, here, pion, chat_base
):
    assert expected in refused(pion, written({"p.jsonl": records}), "--from", str(chat_base))


def test_more_is_held_out_if_the_usual_share_holds_out_nothing(here, pion, sky_home, chat_base):
    data = write_jsonl(here / "prefs.jsonl", [*map(pair_of, range(2, 4))] * 300)
    job, _ = made(pion, data, "--from", str(chat_base))
    assert job.prefer is not None
    assert job.prefer.held_out == 0.2


def test_less_money_buys_fewer_passes(here, pion, sky_home, chat_base):
    data = write_jsonl(here / "prefs.jsonl", map(pair_of, range(400)))
    job, _ = made(pion, data, "--from", str(chat_base), "--dollars", "1e-6")
    assert job.prefer is not None
    assert job.prefer.epochs is not None
    assert job.prefer.epochs < 1


@pytest.mark.parametrize(
    ("files", "options", "expected"),
    [
        ({"p.jsonl": [PAIRS[1], pair_of(2, chosen=None)]}, (), "p.jsonl:2: key 'chosen' is miss"),
        ({"p.jsonl": PAIRS[:1]}, ("--from", "none"), "they need a model that answers"),
        (
            {"pairs.jsonl": PAIRS[:1], "texts.jsonl": [{"text": "A text, and no pair."}]},
            (),
            "text and preferences are mixed: data/texts.jsonl has text, and data/pairs.jsonl",
        ),
    ],
)
def test_what_can_not_be_used_is_refused_and_nothing_is_written(
    files, options, expected, here, pion
):
    said = refused(pion, written(files), *options)
    assert expected in said
    assert "Nothing was written" in said


def test_a_job_reads_a_copy_of_a_table_with_pairs(here, pion, sky_home, chat_base):
    records = list(map(pair_of, range(200)))
    with (here / "prefs.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, records[0])
        table.writeheader()
        table.writerows(records)
    job, printed = made(pion, here / "prefs.csv", "--from", str(chat_base))
    assert "wrote prefs-pairs.jsonl: 200 records" in printed
    assert job.train_stages == ["prefer"]
    rows = {row.name: row.words for row in check_rows(job)}
    assert rows["preferences"].startswith("184 pairs in")


# ---------------------------------------------------------------- a little data


def paragraphs(folder, size):
    text = "\n\n".join(own_data.words(30, n) for n in range(200))
    (folder / "t.txt").write_text(text[:size])
    return folder / "t.txt"


def documents(folder):
    """Write a few documents, each of many lines."""
    texts = [{"text": own_data.words(4000, n)} for n in range(6)]
    return own_data.write_lines(folder / "t.jsonl", texts)


FEW = "too few conversations"
# What is written, and why it may be refused.
LITTLE = [
    *((partial(own_data.sharegpt, count=count), FEW) for count in (1, 4, 8, 12)),
    *((partial(paragraphs, size=size), "too little text") for size in (300, 3000)),
    (partial(paragraphs, size=6000), None),
    (documents, None),
]


@pytest.mark.parametrize(("write", "why"), LITTLE)
def test_a_little_data_passes_check_or_is_refused_before_prices_are_asked(
    write, why, here, pion, sky_home, plain_base
):
    data = write(here)
    start = str(plain_base) if why == FEW else "none"
    code, printed, errors = pion("new", data.name, "--from", start)
    if code:
        assert why is not None
        assert why in errors
        assert "price" not in printed
        assert not [*here.glob("*.yaml")]
    else:
        (job,) = here.glob("*.yaml")
        assert not [row for row in run_checks(read_job(job), None) if row.ok is False]
