"""Sources of preferences: files of others, and what is said about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pion.data.documents.file_to_documents import Record
from pion.data.documents.python_docs import is_held_out
from pion.data.preference.layouts import Labelled, Pair, parse_preference
from pion.data.tokens.token_bytes import ReplacedCharacters
from pion.errors import BadInput
from pipeline.data import preferences as module
from pipeline.data.preferences import Read, preferences
from pipeline.data.remarks import Remarks
from pipeline.data.sources import Input, find_input
from pipeline.job import HubDataset, JsonlFiles, ParquetFiles, PythonDocsPrefer
from tests.support.corpora import make_job, write_corpus
from tests.support.preference_files import KEY, label_of, pair_of, write_jsonl


def read(folder: Path, source: Any, remarks: Remarks | None = None) -> list[Read]:
    write_corpus(folder / "corpus.jsonl", 1)
    job = make_job(folder)
    return list(preferences(job, find_input(job, source, KEY), remarks))


JSONL = JsonlFiles(kind="jsonl", path="prefs.jsonl")


def test_json_lines_give_pairs_with_their_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(1), pair_of(2)])
    found = read(tmp_path, JSONL)
    assert [one.kind for one in found] == ["pairs", "pairs"]
    assert all(one.required for one in found)
    second = found[1].preference
    assert isinstance(second, Pair)
    assert second.chosen.where == f"{tmp_path}/prefs.jsonl:2"
    assert second.chosen.messages[0]["content"] == pair_of(2)["prompt"]


def test_pairs_about_the_library_are_held_out_with_the_files_that_pretraining_holds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [parse_preference(pair_of(n), f"file{n % 20}.py") for n in range(40)]
    monkeypatch.setattr(module, "docs_pairs", lambda better: pairs)
    found = read(tmp_path, PythonDocsPrefer(kind="python-docs-prefer"))
    share = make_job(tmp_path).data.held_out
    held_out = [is_held_out(f"file{n % 20}.py", share) for n in range(40)]
    assert [one.held_out for one in found] == held_out
    assert set(held_out) == {True, False}
    assert [one.preference for one in found] == pairs


def test_parquet_gives_pairs_of_lists_whose_other_keys_are_null(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    def side(text: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]

    rows = [
        {"prompt": "Hi", "chosen": side("a"), "rejected": side("b"), "score_chosen": 1.0},
        {"prompt": "Hi", "chosen": side("c"), "rejected": side("d"), "score_chosen": None},
    ]
    rows[0]["chosen"][1]["name"] = "Pat"  # type: ignore[index]
    table = pyarrow.Table.from_pylist([{**row, "id": "x"} for row in rows])
    pyarrow.parquet.write_table(table, tmp_path / "prefs.parquet")
    found = read(tmp_path, ParquetFiles(kind="parquet", path="prefs.parquet"))
    pairs = [one.preference for one in found]
    assert all(isinstance(one, Pair) and one.scores is None for one in pairs)
    assert isinstance(pairs[1], Pair)
    assert pairs[1].rejected.messages[1] == {"role": "assistant", "content": "d"}
    assert pairs[1].rejected.where == f"{tmp_path}/prefs.parquet row 2"


def test_answers_with_labels_are_another_kind_of_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prefs.jsonl", [label_of(0), label_of(1)])
    found = read(tmp_path, JSONL)
    assert [one.kind for one in found] == ["labels", "labels"]
    assert [one.preference.desired for one in found if isinstance(one.preference, Labelled)] == [
        False,
        True,
    ]


def test_a_source_with_both_kinds_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(1), pair_of(2), label_of(3)])
    with pytest.raises(BadInput) as error:
        read(tmp_path, JSONL)
    assert str(error.value) == (
        f"{tmp_path}/prefs.jsonl:3: found an answer with a label, but {tmp_path}/prefs.jsonl:1 has "
        "a pair. A source has one kind of preferences: use two files"
    )


def test_of_the_hub_only_the_first_records_must_be_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "corpus.jsonl", 1)
    job, source = make_job(tmp_path), HubDataset(kind="hub", repo="user/prefs")
    records = [pair_of(0), pair_of(1), {"text": "?"}, label_of(2), pair_of(3)]

    def from_hub(*_: Any) -> Any:
        return (Record(value, f"user/prefs row {n}") for n, value in enumerate(records, 1))

    monkeypatch.setattr(module, "records", from_hub)
    monkeypatch.setattr(module, "SAMPLED", 2)
    found = list(preferences(job, Input(source, KEY, "commit")))
    assert [one.kind for one in found] == ["pairs", "pairs", None, None, "pairs"]
    assert [one.required for one in found] == [True, True, False, False, False]
    assert str(found[2].preference).startswith("user/prefs row 3: not a preference")
    assert "row 4: found an answer with a label" in str(found[3].preference)
    monkeypatch.setattr(module, "SAMPLED", 3)
    with pytest.raises(BadInput, match="row 3: not a preference"):
        list(preferences(job, Input(source, KEY, "commit")))


def test_other_names_of_roles_are_said(tmp_path: Path) -> None:
    chosen = [{"role": "Human", "content": "Hi"}, {"role": "bot", "content": "a"}]
    rejected = [{"role": "Human", "content": "Hi"}, {"role": "model", "content": "b"}]
    openai = {
        "input": {"messages": [{"role": "prompter", "content": "Hi"}]},
        "preferred_output": [{"role": "bot", "content": "a"}],
        "non_preferred_output": {"role": "bot", "content": "b"},
    }
    write_jsonl(tmp_path / "prefs.jsonl", [{"chosen": chosen, "rejected": rejected}, openai])
    remarks = Remarks(ReplacedCharacters(None))
    assert len(read(tmp_path, JSONL, remarks)) == 2
    (words,) = remarks.in_words()
    assert words.startswith("roles with other names: 'Human' as user, 'bot' as assistant")
    assert "'prompter' as user" in words


def test_half_characters_become_question_marks(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(1, chosen="a \ud800 b")])
    (found,) = read(tmp_path, JSONL)
    assert isinstance(found.preference, Pair)
    assert found.preference.chosen.messages[-1]["content"] == "a ? b"
