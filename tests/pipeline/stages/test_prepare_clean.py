"""prepare with data.clean: what is left out, the receipt, and the same bytes after kills."""

import json
import multiprocessing
import os
import random

import pytest

from pion.data.documents.python_docs import is_held_out
from pion.errors import BadInput
from pipeline.data.cleaning import judged
from pipeline.job.file import load_job
from pipeline.machine.kill_points import HALT_AT
from tests.support.core_bundle import pinned, write_bundle
from tests.support.corpora import files_of, job_by_file, prepare, prepared, sentences, texts_of
from tests.support.planted_copies import near_copy, plant
from tests.support.waiting import wait_until

ITEM = "which of the old ships carried winter bread and letters under the green stone house"
ANSWER = "the small ship with many windows that sings"
AGAIN = "the ship and the winter map " * 30


def texts(count=200, first=0):
    return [sentences(first + n, 6) for n in range(count)]


def write(folder, *sources):
    """Write each source's texts as a JSON Lines file; return the sources of a job."""
    named = []
    for number, source in enumerate(sources):
        path = folder / f"texts{number}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in source))
        named.append({"kind": "jsonl", "path": path.name})
    return named


def job_of(folder, *sources, clean, **sections):
    """Return a job that cleans the sources. Its tokenizer is given."""
    return job_by_file(
        folder, data={"sources": write(folder, *sources), "clean": clean}, **sections
    )


def kept(data):
    """Return the texts of both splits. The last of a source and split may be cut."""
    return {text for split in ("train", "held_out") for text in texts_of(data, split)}


def dropped(data):
    return {one["rule"]: one["documents"] for one in data.report["cleaned"]["dropped"]}


def test_text_that_is_cleaned_starts_no_other_processes(tmp_path):
    def start():
        raise AssertionError("started for nothing")

    job = job_of(tmp_path, texts(), clean={})
    prepare(job, tmp_path / "data", tasks=start, least=0)


# ---------------------------------------------------------------- what is left out


def test_cleaned_text_gives_the_rows_and_the_vocabulary_of_text_without_what_is_left_out(tmp_path):
    good = texts()
    bad = ["too short", AGAIN, good[3].upper()]
    bad.append(near_copy(f"{good[5]} {good[6]}", "all four", random.Random(0), ["ships"]))
    mixed = [*good[:100], *bad[:2], f"{good[5]} {good[6]}", *good[100:], *bad[2:]]
    clean = {"min_words": 5, "max_repetition": 0.5}
    train = {"tokenizer": {"train": {"vocab_size": 400}}}
    cleaned = prepared(job_of(tmp_path, mixed, clean=clean, **train), tmp_path / "one")
    by_hand = [*good[:100], f"{good[5]} {good[6]}", *good[100:]]
    job = job_of(tmp_path, by_hand, clean=None, **train)
    expected = prepared(job, tmp_path / "two")
    assert dropped(cleaned) == {
        "too short": 1,
        "repeats itself": 1,
        "exact copy": 1,
        "near-copy": 1,
    }
    assert kept(cleaned) == kept(expected)
    assert cleaned.tokenizer_path.read_bytes() == expected.tokenizer_path.read_bytes()
    names = ("documents", "bytes", "train_rows", "held_out_rows")
    assert [cleaned.report[n] for n in names] == [expected.report[n] for n in names]


def test_of_copies_in_several_sources_that_of_the_first_source_is_kept(tmp_path):
    first, second = texts(100), texts(100, 1000)
    copies = [near_copy(text, "other case", random.Random(0), []) for text in first[:40]]
    data = prepared(job_of(tmp_path, first, [*copies, *second], clean={}), tmp_path / "one")
    own = data.report["cleaned"]["sources"]
    assert [(one["documents"], one["kept"]) for one in own] == [(100, 100), (140, 100)]
    turned = prepared(job_of(tmp_path, [*copies, *second], first, clean={}), tmp_path / "two")
    own = turned.report["cleaned"]["sources"]
    assert [(one["documents"], one["kept"]) for one in own] == [(140, 140), (100, 60)]


def test_the_threshold_changes_the_result(tmp_path):
    mixed = [text for text, _ in plant(texts(), 0.3, "5 % of the words replaced")]
    found = {}
    for near in (None, 0.8, 0.6):
        data = prepared(job_of(tmp_path, mixed, clean={"near": near}), tmp_path / str(near))
        found[near] = dropped(data).get("near-copy", 0)
    assert found[None] == 0
    assert 0 < found[0.8] < found[0.6]
    assert 58 <= found[0.6] <= 62


def test_no_copy_of_a_held_out_document_is_trained_on(tmp_path):
    # A near-copy has its own hash, so without cleaning it may be on the other side.
    mixed = [text for text, _ in plant(texts(), 0.5, "other white space")]
    data = prepared(job_of(tmp_path, mixed, clean={}), tmp_path / "data")
    train, held_out = (
        {" ".join(text.split()) for text in texts_of(data, split)[:-1]}
        for split in ("train", "held_out")
    )
    assert held_out
    assert not train & held_out


# ---------------------------------------------------------------- evaluation sets


def pack(folder, *items):
    lines = ({"context": f"{q} ", "choices": ["no", a], "answer": 1} for q, a in items)
    (folder / "pack.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def with_item(side):
    """Return a text with the item, which is held out or not."""
    variants = (
        f"{sentences(n, 3)} {ITEM.upper()},  {ANSWER}! {sentences(n, 3)}" for n in range(99)
    )
    return next(text for text in variants if is_held_out(text, 0.1) is side)


@pytest.mark.parametrize("named", ["evaluate", "pack.jsonl"])
def test_a_document_to_train_on_that_holds_an_item_is_left_out(named, tmp_path):
    other = ("what sings quietly in the winter house", "an old map of bread")
    pack(tmp_path, (ITEM, ANSWER), other)
    leak, harmless = with_item(False), with_item(True)
    sections = {"evaluate": {"packs": ["pack.jsonl"]}}
    clean = {"decontaminate": [named]}
    job = job_of(tmp_path, [*texts(), leak, harmless, *texts(50, 500)], clean=clean, **sections)
    data = prepared(job, tmp_path / "data")
    assert dropped(data) == {"holds an evaluation item": 1}
    assert leak not in kept(data)
    assert harmless in kept(data)
    (example,) = data.report["cleaned"]["dropped"][0]["examples"]
    assert example["item"] == f"pack: {ITEM} {ANSWER}"
    assert example["document"] == "texts0.jsonl:201"
    (found,) = data.report["cleaned"]["sets"]
    assert (found["items"], found["unjudged"]) == (2, 0)
    assert found["overlapped"]["share"] == 0.5
    # Excerpts of the harmless text are in the other text, too.
    assert 0 < found["control"]["share"] < 0.1


def test_a_made_up_core_bundle_is_read_task_by_task(tmp_path, monkeypatch):
    pinned(monkeypatch, write_bundle(tmp_path / "b.zip"))
    job = job_of(tmp_path, texts(), clean={"decontaminate": ["b.zip"]})
    found = prepared(job, tmp_path / "data").report["cleaned"]["sets"]
    assert [one["name"] for one in found] == ["made_up_choice", "made_up_schema", "made_up_words"]
    assert all(one["items"] == 12 for one in found)


# ---------------------------------------------------------------- the receipt


def test_the_receipt_has_three_examples_of_each_rule_cut_short_and_names_no_folder(tmp_path):
    good = texts()
    copies = [f"{text} {sentences(n, 1)}" for n, text in enumerate(good[:30])]
    second = [*copies, *texts(100, 1000)]
    job = job_of(tmp_path, [*good, *["x y"] * 2, "z"], second, clean={"min_words": 3})
    cleaned = prepared(job, tmp_path / "data").report["cleaned"]
    assert (cleaned["documents"], cleaned["kept"]) == (333, 300)
    assert cleaned["seconds"] >= 0
    short, near = cleaned["dropped"]
    assert [one["text"] for one in short["examples"]] == ["x y", "x y", "z"]
    assert [one["document"] for one in near["examples"]] == [
        "texts1.jsonl:1",
        "texts1.jsonl:15",
        "texts1.jsonl:30",
    ]
    assert [one["like"]["document"] for one in near["examples"]] == [
        "texts0.jsonl:1",
        "texts0.jsonl:15",
        "texts0.jsonl:30",
    ]
    assert all(len(one["text"]) <= 201 for one in near["examples"])
    assert str(tmp_path) not in json.dumps(cleaned)


def test_prepare_says_how_many_documents_are_kept_and_leaves_no_other_file(tmp_path):
    said = []
    good = texts()
    job = job_of(tmp_path, [*good, *good[:10]], clean={})
    prepare(job, tmp_path / "data", lambda m: said.append(getattr(m, "text", "")))
    assert "data.clean keeps 200 of 210 documents" in said
    assert not (tmp_path / "data" / "clean").exists()


# ---------------------------------------------------------------- interruptions


def prepare_until(folder, halt_at):
    """Prepare in a process of one's own, up to this mark."""
    os.environ[HALT_AT] = halt_at
    judged.BATCH_CHARS, judged.SAVED_BYTES = 10_000, 60_000
    prepare(load_job(folder / "job.yaml"), folder / "data")


def killed(folder, number):
    """Prepare in another process, and kill it at its mark of this number.

    Return whether it came so far.
    """
    reached = folder / "reached"
    reached.unlink(missing_ok=True)
    forks = multiprocessing.get_context("fork")
    process = forks.Process(target=prepare_until, args=(folder, f"shard:{number}:{reached}"))
    process.start()
    wait_until(lambda: reached.exists() or not process.is_alive(), "a mark of prepare")
    process.kill()
    process.join(60)
    return reached.exists()


def test_killed_again_and_again_it_ends_with_the_same_bytes_and_the_same_receipt(tmp_path):
    pack(tmp_path, (ITEM, ANSWER))
    mixed = [text for text, _ in plant(texts(1000), 0.2, "all four")]
    clean = {"decontaminate": ["pack.jsonl"]}
    job = job_of(tmp_path, [*mixed[:700], with_item(False)], mixed[700:], clean=clean)
    folder = tmp_path / "data" / "clean"
    progress = []
    # The first processes die while they judge documents, at different points; the last ones after
    # the decision is written, but not its record, and while rows are written.
    for number in (2, 4, 2):
        assert killed(tmp_path, number)
        names = {path.name for path in folder.iterdir()}
        assert "decided.json" not in names
        progress.append(sum(json.loads((folder / "progress.json").read_text())["counts"]))
    assert killed(tmp_path, 2)
    assert (folder / "verdicts.npy").exists()
    assert not (folder / "decided.json").exists()
    assert killed(tmp_path, 5)
    assert (folder / "decided.json").exists()
    assert 0 < progress[0] < progress[1] < progress[2]

    resumed, unbroken = (
        prepare(job, tmp_path / name).report["cleaned"] for name in ("data", "unbroken")
    )
    assert files_of(tmp_path / "data") == files_of(tmp_path / "unbroken")
    assert resumed | {"seconds": 0} == unbroken | {"seconds": 0}
    assert len(unbroken["dropped"]) == 2


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("clean", "words"),
    [
        (
            {"min_words": 10**6},
            r"data\.sources\.0: data\.clean leaves out all of its 200 documents",
        ),
        ({"decontaminate": ["none.jsonl"]}, r"data\.clean\.decontaminate\.0: .*none\.jsonl: can't"),
        (
            {"decontaminate": ["texts0.jsonl"]},
            r"data\.clean\.decontaminate\.0: .*jsonl:1: not a qu",
        ),
        (
            {"decontaminate": ["."]},
            r"data\.clean\.decontaminate\.0: .*expected the published archive",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_key(clean, words, tmp_path):
    job = job_of(tmp_path, texts(), clean=clean)
    with pytest.raises(BadInput, match=words):
        prepare(job, tmp_path / "data")


def test_a_damaged_file_of_an_interrupted_start_is_named_with_the_way_out(tmp_path):
    job = job_of(tmp_path, texts(1000), clean={})
    assert killed(tmp_path, 2)
    folder = tmp_path / "data" / "clean"
    (folder / "documents").write_bytes(b"")
    with pytest.raises(BadInput, match=r"documents is shorter than progress.*--redo prepare"):
        prepare(job, tmp_path / "data")
    record = json.loads((folder / "progress.json").read_text())
    for damaged in (
        {},
        record | {"counts": [1, 2]},
        record | {"found": record["found"] | {"rows": -1}},
    ):
        (folder / "progress.json").write_text(json.dumps(damaged))
        with pytest.raises(BadInput, match=r"progress\.json is damaged .*--redo prepare"):
            prepare(job, tmp_path / "data")
