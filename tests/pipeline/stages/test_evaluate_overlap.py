"""Evaluation sets in the training rows: planted ones are found, and the search resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pion.data.shard_writer import ShardWriter
from pipeline.job import Job
from pipeline.report.overlap import NOT_MEASURED
from pipeline.report.result_tables import Table, result_blocks
from pipeline.stages import overlap
from tests.pipeline.stages.test_evaluate import SEQ_LEN, Folder, World
from tests.support.core_bundle import write_bundle

LEAKED = [
    f"the cat {n} sat on a mat number {n} and then it ate the bone {n} of the dog"
    for n in range(12)
]
CLEAN = [
    f"a list of items {n} is not a bone and {n} times two is more than {n} of the cats"
    for n in range(12)
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run that was trained on the questions of one pack and on none of another."""
    made = World(tmp_path_factory.mktemp("world"))
    folder = made.root / "pretrain" / "0" / "train"
    for file in folder.iterdir():
        file.unlink()
    writer = ShardWriter(
        folder, seq_len=SEQ_LEN, vocab_size=made.tokenizer.vocab_size, rows_per_shard=64
    )
    for text in [*LEAKED, "a dog ate the bone. " * 40]:
        writer.append_document(made.tokenizer.encode(text), made.tokenizer.end_of_text)
    made._manifest("tokens", writer, folder)
    for name, texts in (("leaked", LEAKED), ("clean", CLEAN)):
        lines = [
            {"context": text[:-9], "choices": [text[-9:], " nothing"], "answer": 0}
            for text in texts
        ]
        path = made.root / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
    return made


def job(world: World, **evaluate: Any) -> Job:
    packs = [str(world.root / f"{name}.jsonl") for name in ("leaked", "clean")]
    given = {"packs": packs, "overlap": "all", "ngram_order": 0, "continuations": 0, **evaluate}
    found = world.job(**given)
    found.pretrain.global_batch = 64  # type: ignore[union-attr]
    return found


def sets_of(results: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in results["overlap"]["sets"]}


def test_what_was_trained_on_is_found_and_what_was_not_is_not(world: World) -> None:
    results, said = world.run(job(world), Folder())
    sets = sets_of(results)
    assert sets["packs.leaked"]["overlapped"]["share"] > 0.5
    assert "of the items overlap; of held-out text" in sets["packs.leaked"]["verdict"]
    assert sets["packs.clean"]["overlapped"]["share"] == 0
    assert sets["packs.clean"]["verdict"] == "no sign"
    example = sets["packs.leaked"]["examples"][0]
    assert example["row_has"] in example["item"] or example["item"] in example["row_has"]
    assert example["source"] == "pretrain, text text"
    assert any("overlap with evaluation sets" in line for line in said)
    assert results["overlap"]["tokens"] == results["overlap"]["of_tokens"]


def test_accuracies_of_clean_and_overlapped_items_follow(world: World) -> None:
    parts = Folder()
    results, _ = world.run(job(world), parts)
    found = sets_of(results)["packs.leaked"]["accuracy"]["sft"]
    assert found["items"] == 12
    share = found["clean_items"] / 12
    whole = share * (found["clean"] or 0) + (1 - share) * found["overlapped"]
    assert whole == pytest.approx(found["all"])
    assert found["all"] == results["sft"]["packs"]["leaked"]["accuracy"]


def test_report_and_card_say_what_was_found(world: World) -> None:
    results, _ = world.run(job(world), Folder())
    blocks = result_blocks(job(world), results)
    (words,) = [b for b in blocks if str(b).startswith("Evaluation questions in the training")]
    assert "no sign in 1 of 2 sets of questions; packs.leaked: " in words
    assert any(isinstance(b, Table) and b.header[0] == "questions" for b in blocks)
    assert any("the row has “" in b for b in blocks if isinstance(b, str))
    brief = result_blocks(job(world), results, brief=True)
    assert words in brief
    assert not any(isinstance(b, Table) and b.header[0] == "questions" for b in brief)
    assert NOT_MEASURED in result_blocks(job(world, overlap=None), {"sft": results["sft"]})


def test_core_over_the_questions_that_are_not_in_the_rows_is_shown(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = {"path": str(write_bundle(tmp_path)), "items": "all", "cropped": True}
    asked = job(world, packs=[], core=core)
    few = world.run(asked, Folder())[0]
    assert few["overlap"]["clean_core"] == {}  # 12 items of a task say too little
    monkeypatch.setattr(overlap, "LEAST_CLEAN", 1)
    results, _ = world.run(asked, Folder())
    clean = results["overlap"]["clean_core"]["sft"]
    assert clean == pytest.approx(results["sft"]["core"]["value"])  # none is in the rows
    (words,) = [b for b in result_blocks(asked, results) if "that are not in them" in str(b)]
    assert words.startswith("mean of 3 tasks over the questions that are not in them: fine-tuned ")
    assert f"{clean:.4f} (all questions: {clean:.4f})" in words


@pytest.mark.parametrize("room", [1, 3])
def test_an_interrupted_search_continues_after_its_last_part(
    world: World, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "TOKENS_OF_A_PART", 4 * SEQ_LEN)
    whole = Folder()
    expected, every = world.run(job(world), whole)
    parts = Folder(len(whole.kept) - 1 - room)
    with pytest.raises(KeyboardInterrupt):
        world.run(job(world), parts)
    parts.room = 1000
    results, said = world.run(job(world), parts)
    assert (results, parts.kept) == (expected, whole.kept)
    assert sum("overlap with" in line for line in said) == room
    assert sum("overlap with" in line for line in every) > 4


def test_auto_searches_what_was_read_first_and_says_how_much(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "AUTO_TOKENS", 6 * SEQ_LEN)
    found = world.run(job(world, overlap="auto"), Folder())[0]["overlap"]
    assert found["tokens"] == 6 * SEQ_LEN < found["of_tokens"]
    assert "that were searched" in sets_text(found)


def sets_text(found: dict[str, Any]) -> str:
    return " ".join(one["verdict"] for one in found["sets"])


def test_only_rows_that_were_read_are_searched(world: World) -> None:
    few = job(world)
    few.pretrain.global_batch = 1  # type: ignore[union-attr]
    few.pretrain.steps = 1  # type: ignore[union-attr]
    found = world.run(few, Folder())[0]["overlap"]
    assert found["rows"] < world.run(job(world), Folder())[0]["overlap"]["rows"]


def test_a_job_that_does_not_ask_gets_no_search(world: World) -> None:
    for value in (None, "off"):
        results, said = world.run(job(world, overlap=value), Folder())
        assert "overlap" not in results
        assert not any("overlap" in line for line in said)


def test_a_search_without_questions_is_a_mistake_of_the_job(world: World) -> None:
    with pytest.raises(ValueError, match="neither packs nor core, so there are no questions"):
        job(world, packs=[])
