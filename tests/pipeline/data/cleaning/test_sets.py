"""The evaluation sets of data.clean.decontaminate, the held-out text next to them, and what both
say."""

import json
from itertools import islice

import pytest

from pion.data.overlap.items import Item, ItemSet, counted_words
from pion.evaluation.shares import Share, wilson
from pipeline.data.cleaning import sets
from pipeline.data.cleaning.receipt import judge, verdict
from pipeline.data.cleaning.sets import draw_control
from pipeline.data.sources import find_input
from tests.support.core_bundle import pinned, write_bundle
from tests.support.corpora import make_job, sentences
from tests.support.overlap_texts import Prose, searched, text_of


@pytest.fixture
def job(tmp_path, monkeypatch):
    lines = (json.dumps({"text": sentences(n, 6)}) + "\n" for n in range(2000))
    (tmp_path / "corpus.jsonl").write_text("".join(lines))
    question = {"context": f"{sentences(1, 3)} ", "choices": ["no", "that ship sings"], "answer": 1}
    (tmp_path / "pack.jsonl").write_text(json.dumps(question) + "\n")
    pinned(monkeypatch, write_bundle(tmp_path / "core.zip"))
    source = {"kind": "jsonl", "path": "corpus.jsonl"}
    clean = {"decontaminate": ["core.zip", "pack.jsonl"]}
    return make_job(tmp_path, data={"sources": [source], "clean": clean})


def test_a_question_is_asked_with_its_right_answer(job):
    *tasks, pack = sets.read_sets(job)
    (item,) = pack.items
    assert (pack.name, item.answer) == ("pack", "that ship sings")
    assert item.question == f"{sentences(1, 3)} "
    words = next(task for task in tasks if task.name == "made_up_words")
    assert all(item.answer in ("list", "key", "tool", "in the") for item in words.items)


def test_the_control_comes_from_held_out_documents_and_only_from_the_first(job, monkeypatch):
    read = []
    whole = sets.documents

    def documents(*arguments):
        for document in whole(*arguments):
            read.append(document.text)
            yield document

    monkeypatch.setattr(sets, "documents", documents)
    monkeypatch.setattr(sets, "CONTROL_CHARS", 20_000)
    inputs = [find_input(job, source, key) for key, source in job.sources()]
    pack = sets.with_control(job, sets.read_sets(job), inputs)[-1]
    assert len("".join(read[:-1])) < 20_000 <= len("".join(read))
    held_out = " ".join(
        document.text
        for document in islice(whole(job, inputs[0]), len(read))
        if sets.is_held_out(job, document)
    ).lower()
    assert pack.control
    for excerpt in pack.control[:50]:
        assert excerpt.question in held_out.replace(".", "")


def test_without_sets_nothing_is_read(job):
    assert sets.with_control(job, [], []) == []


# ---------------------------------------------------------------- the control


def rows_of(prose, count):
    return [prose.text(200).encode() for _ in range(count)]


def test_excerpts_are_as_long_as_the_items_and_from_held_out_rows():
    prose = Prose(4)
    items = [*(prose.item(8, 8) for _ in range(50)), *(prose.item(20, 20) for _ in range(50))]
    items += [Item("too short", "")]
    rows = rows_of(prose, 30)
    control = draw_control(items, rows, count=300)
    sizes = [len(counted_words(excerpt)[0]) for excerpt in control]
    expected = {len(counted_words(item)[0]) for item in items} - {2}
    assert set(sizes) == expected
    assert len(control) == 300
    for excerpt in control:
        row = rows[int(excerpt.passage.removeprefix("row "))]
        assert counted_words(excerpt)[0] == excerpt.question.encode().split()
        assert excerpt.question.split()[0] in row.decode().lower()


def test_the_same_arguments_give_the_same_excerpts():
    prose = Prose(5)
    items, rows = [prose.item() for _ in range(20)], rows_of(prose, 20)
    assert draw_control(items, rows, 50) == draw_control(items, rows, 50)
    assert draw_control(items, rows, 50, seed=1) != draw_control(items, rows, 50)


@pytest.mark.parametrize("rows", [[], [b""], [b"only a few words"]])
def test_rows_and_items_that_are_too_short_give_no_excerpt(rows):
    assert draw_control([Prose().item(20, 20)], rows) == []
    for items in ([], [Item("too", "short")]):
        assert draw_control(items, rows_of(Prose(), 3)) == []


def test_items_of_the_same_duplicated_text_are_no_sign_but_a_leak_is():
    prose = Prose(7)
    held_out = [prose.text(120) for _ in range(600)]
    train = [prose.row(text) for text in held_out[:90]] + [prose.row() for _ in range(400)]
    # An evaluation set made of text like the corpus: as much of it is duplicated.
    items = draw_control([prose.item() for _ in range(300)], [r.encode() for r in held_out], 300, 9)
    control = draw_control(items, [row.encode() for row in held_out])
    of_set = [ItemSet("set", items, control)]
    (clean,) = judge(*searched(of_set, train))
    assert clean["verdict"] == "no sign"
    assert clean["overlapped"]["share"] > 0.1
    assert len(control) == 1000
    assert clean["control"]["low"] < 0.15 < clean["control"]["high"]
    leaked = [*train, *(prose.row(text_of(item)) for item in items[:120])]
    (leak,) = judge(*searched(of_set, leaked))
    assert "of the items overlap; of held-out text" in leak["verdict"]


# ---------------------------------------------------------------- the verdict


def share(hits, n):
    return Share(hits / n, *wilson(hits / n, n))


@pytest.mark.parametrize(
    ("hits", "control", "expected"),
    [
        (0, 0, "no sign"),
        (5, 0, "no sign"),  # of 1000, too few to tell from chance
        (10, 0, "1.0 % of the items overlap; of held-out text 0.0 % ± 0.1 does"),
        (50, 40, "no sign"),
        (90, 40, "9.0 % of the items overlap; of held-out text 4.0 % ± 0.6 does"),
        (0, 400, "no sign"),
    ],
)
def test_a_set_is_compared_with_its_control(hits, control, expected):
    assert verdict(share(hits, 1000), share(control, 1000), rows=1) == expected


def test_what_was_not_measured_is_said():
    assert verdict(share(1, 9), share(1, 9), rows=0) == "not searched"
    assert verdict(None, share(1, 9), rows=1).startswith("can't be judged")
    assert verdict(share(9, 9), None, rows=1).startswith("no verdict")


def test_each_set_has_its_own_result():
    prose = Prose(8)
    short = [Item("too short", "yes") for _ in range(3)]
    four = [
        ItemSet("leaked", [*short, *(prose.item() for _ in range(60))], [prose.item()] * 2),
        ItemSet("clean", [prose.item() for _ in range(60)], [prose.item() for _ in range(500)]),
        ItemSet("empty", []),
        ItemSet("short", short, [prose.item()]),
    ]
    rows = [prose.row(text_of(item)) for item in four[0].items[10:50]]
    index, found = searched(four, rows)
    leaked, clean, empty, too_short = judge(index, found)
    assert [result["name"] for result in (leaked, clean, empty, too_short)] == [
        s.name for s in four
    ]
    assert (leaked["items"], leaked["unjudged"]) == (63, 3)
    assert leaked["overlapped"] == share(40, 60)._asdict()
    assert leaked["with_answer"] == share(40, 60)._asdict()
    assert leaked["digest"] == four[0].digest
    assert clean["overlapped"] == share(0, 60)._asdict()
    assert clean["control"] == share(0, 500)._asdict()
    assert clean["verdict"] == "no sign"
    assert (empty["items"], empty["overlapped"], empty["control"]) == (0, None, None)
    assert (too_short["unjudged"], too_short["overlapped"]) == (3, None)
    assert too_short["verdict"].startswith("can't be judged")


def test_items_of_one_passage_widen_the_interval():
    prose = Prose(9)
    items = []
    for passage in range(20):
        items += [
            Item(i.question, i.answer, f"p{passage}") for i in (prose.item() for _ in range(10))
        ]
    rows = [prose.row(text_of(item)) for item in items[:50]]
    (result,) = judge(*searched([ItemSet("set", items)], rows))
    alone = share(50, 200)
    assert result["overlapped"]["share"] == alone.share == 0.25
    assert Share(**result["overlapped"]).sem > 2 * alone.sem
