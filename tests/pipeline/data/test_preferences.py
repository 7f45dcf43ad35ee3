"""Sources of preferences: files of others, and what is said about them."""

from dataclasses import replace

import numpy as np
import pytest

from pion.data.documents.file_to_documents import Record
from pion.data.documents.python_docs import is_held_out
from pion.data.order import RowOrder
from pion.data.preference.layouts import Pair, parse_preference
from pion.data.row_flags import SEQUENCES
from pion.data.stream import RowStream
from pion.data.tokens.token_bytes import ReplacedCharacters
from pion.errors import BadInput
from pipeline.data import preferences_to_rows, sources
from pipeline.data.preferences import preferences
from pipeline.data.remarks import Remarks
from pipeline.data.sources import Input, find_input
from pipeline.job import HubDataset, JsonlFiles, ParquetFiles, PythonDocsPrefer
from tests.support.chat_templates import CHATML, QWEN3
from tests.support.corpora import files_of, make_job, write_corpus
from tests.support.interrupted import ends_at
from tests.support.preference_files import (
    KEY,
    label_of,
    pair_of,
    read_rows,
    sequences_in,
    write_jsonl,
    write_rows,
)

pytestmark = pytest.mark.usefixtures("quick_renderer")


def read(folder, source, remarks=None):
    write_corpus(folder / "corpus.jsonl", 1)
    job = make_job(folder)
    return list(preferences(job, find_input(job, source, KEY), remarks))


JSONL = JsonlFiles(kind="jsonl", path="prefs.jsonl")


def test_json_lines_give_pairs_with_their_line(tmp_path):
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(1), pair_of(2)])
    found = read(tmp_path, JSONL)
    assert [one.kind for one in found] == ["pairs", "pairs"]
    assert all(one.required for one in found)
    second = found[1].preference
    assert second.chosen.where == f"{tmp_path}/prefs.jsonl:2"
    assert second.chosen.messages[0]["content"] == pair_of(2)["prompt"]


def test_parquet_gives_pairs_of_lists_whose_other_keys_are_null(tmp_path):
    import pyarrow
    import pyarrow.parquet

    def side(text):
        return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]

    rows = [
        {"prompt": "Hi", "chosen": side("a"), "rejected": side("b"), "score_chosen": 1.0},
        {"prompt": "Hi", "chosen": side("c"), "rejected": side("d"), "score_chosen": None},
    ]
    rows[0]["chosen"][1]["name"] = "Pat"
    table = pyarrow.Table.from_pylist([{**row, "id": "x"} for row in rows])
    pyarrow.parquet.write_table(table, tmp_path / "prefs.parquet")
    found = read(tmp_path, ParquetFiles(kind="parquet", path="prefs.parquet"))
    pairs = [one.preference for one in found]
    assert all(isinstance(one, Pair) and one.scores is None for one in pairs)
    assert pairs[1].rejected.messages[1] == {"role": "assistant", "content": "d"}
    assert pairs[1].rejected.where == f"{tmp_path}/prefs.parquet row 2"


def test_a_source_with_both_kinds_is_refused(tmp_path):
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(1), pair_of(2), label_of(3)])
    with pytest.raises(BadInput) as error:
        read(tmp_path, JSONL)
    assert str(error.value) == (
        f"{tmp_path}/prefs.jsonl:3: found an answer with a label, but {tmp_path}/prefs.jsonl:1 has "
        "a pair. A source has one kind of preferences: use two files"
    )


def test_of_the_hub_only_the_first_records_must_be_usable(tmp_path, monkeypatch):
    write_corpus(tmp_path / "corpus.jsonl", 1)
    job, source = make_job(tmp_path), HubDataset(kind="hub", repo="user/prefs")
    records = [pair_of(0), pair_of(1), {"text": "?"}, label_of(2), pair_of(3)]

    def from_hub(*_):
        return (Record(value, f"user/prefs row {n}") for n, value in enumerate(records, 1))

    monkeypatch.setattr(sources, "records", from_hub)
    monkeypatch.setattr(sources, "SAMPLED", 2)
    found = list(preferences(job, Input(source, KEY, "commit")))
    assert [one.kind for one in found] == ["pairs", "pairs", None, None, "pairs"]
    assert [one.required for one in found] == [True, True, False, False, False]
    assert str(found[2].preference).startswith("user/prefs row 3: not a preference")
    assert "row 4: found an answer with a label" in str(found[3].preference)
    monkeypatch.setattr(sources, "SAMPLED", 3)
    with pytest.raises(BadInput, match="row 3: not a preference"):
        list(preferences(job, Input(source, KEY, "commit")))


def test_other_names_of_roles_are_said(tmp_path):
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


def test_half_characters_become_question_marks(tmp_path):
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(1, chosen="a \ud800 b")])
    (found,) = read(tmp_path, JSONL)
    assert found.preference.chosen.messages[-1]["content"] == "a ? b"


# ---------------------------------------------------------------- rows


SPLITS = ("train", "held_out")


def pairs_in(folder, split, out="rows"):
    """Return prompt, chosen and rejected answer of each pair."""
    found = sequences_in(folder, split, out)
    assert [preferred for *_, preferred in found] == [True, False] * (len(found) // 2)
    assert all(one[0] == other[0] for one, other in zip(found[::2], found[1::2]))
    return [(one[0], one[1], other[1]) for one, other in zip(found[::2], found[1::2])]


@pytest.mark.parametrize("template", [None, ("smollm2", CHATML), ("qwen", QWEN3)])
def test_every_pair_is_in_one_row_of_one_split_with_both_answers(tmp_path, template):
    records = [pair_of(n) for n in range(60)]
    write_jsonl(tmp_path / "prefs.jsonl", records)
    summary = write_rows(tmp_path, template=template, seq_len=768, context=512)
    found = {split: pairs_in(tmp_path, split) for split in SPLITS}
    assert (summary.train.items, summary.held_out.items) == tuple(map(len, found.values()))
    assert summary.held_out.items > 0
    every = sorted(found["train"] + found["held_out"])
    assert len(every) == len(records)
    for record in records:
        (one,) = [pair for pair in every if record["prompt"] in pair[0]]
        assert record["chosen"] in one[1]
        assert record["rejected"] in one[2]
    assert summary.train.rows == read_rows(tmp_path, "train").manifest.rows
    assert read_rows(tmp_path, "train").manifest.kind == "pairs"


def test_a_source_may_say_itself_what_is_held_out(tmp_path, monkeypatch):
    made = [parse_preference(pair_of(n), f"file{n}.py") for n in range(120)]
    monkeypatch.setattr("pipeline.data.preferences.docs_pairs", lambda better: made)
    write_rows(tmp_path, source=PythonDocsPrefer(kind="python-docs-prefer"), seq_len=768)
    share = make_job(tmp_path).data.held_out
    for split in SPLITS:
        prompts = [prompt for prompt, _, _ in pairs_in(tmp_path, split)]
        assert len(prompts) > 5
        for prompt in prompts:
            (number,) = [n for n in range(120) if pair_of(n)["prompt"] in prompt]
            assert is_held_out(f"file{number}.py", share) is (split == "held_out")


def test_pairs_with_one_prompt_are_all_in_one_split(tmp_path):
    """Not by pair: a model that was trained on a prompt would be measured on it."""
    records = [
        {**pair_of(20 * n + k), "prompt": pair_of(n)["prompt"]} for n in range(40) for k in range(3)
    ]
    write_jsonl(tmp_path / "prefs.jsonl", records)
    write_rows(tmp_path, held_out=0.3)
    prompts = {split: [pair[0] for pair in pairs_in(tmp_path, split)] for split in SPLITS}
    assert not set(prompts["train"]) & set(prompts["held_out"])
    assert {prompts[split].count(prompt) for split in SPLITS for prompt in prompts[split]} == {3}
    assert len(prompts["held_out"]) > 0


def test_another_seed_holds_out_other_prompts(tmp_path):
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(n) for n in range(60)])
    held_out = []
    for seed in (1, 2, 1):
        write_rows(tmp_path, out=f"rows{len(held_out)}", seed=seed, held_out=0.3)
        held_out.append(sorted(pairs_in(tmp_path, "held_out", f"rows{len(held_out)}")))
    assert held_out[0] == held_out[2] != held_out[1]


def test_labelled_answers_are_sequences_with_their_label(tmp_path):
    records = [label_of(n) for n in range(40)]
    write_jsonl(tmp_path / "prefs.jsonl", records)
    summary = write_rows(tmp_path)
    assert read_rows(tmp_path, "train").manifest.kind == "labels"
    found = sequences_in(tmp_path, "train") + sequences_in(tmp_path, "held_out")
    assert len(found) == 40 == summary.train.items + summary.held_out.items
    for record in records:
        (one,) = [each for each in found if record["completion"] in each[1]]
        assert record["prompt"] in one[0]
        assert one[2] is record["label"]


def test_sequences_are_counted_for_each_row(tmp_path):
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(n) for n in range(60)])
    write_rows(tmp_path)
    for split in SPLITS:
        rows = read_rows(tmp_path, split)
        counts = np.load(tmp_path / "rows" / split / SEQUENCES)
        assert counts.dtype == np.int32
        sides = [
            rows.row(shard, row).sides
            for shard, count in enumerate(rows.manifest.shard_rows)
            for row in range(count)
        ]
        assert len(sides) > 0
        assert counts.tolist() == [0, *np.cumsum([len(one) for one in sides]).tolist()]


def test_no_row_has_a_position_beyond_the_context(tmp_path):
    """Tables of positions are as long as the context, and a row of pairs may be longer."""
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(n) for n in range(60)])
    write_rows(tmp_path, seq_len=1024, context=60)
    rows = read_rows(tmp_path, "train")
    order = RowOrder(rows.manifest.shard_rows, rows.manifest.fingerprint, 0, 2)
    batch = RowStream([(rows, order)]).batch(range(rows.manifest.rows))
    assert int(batch.positions.max()) < 60
    padding = batch.documents == -1
    assert int(padding.sum(dim=1).max()) > 60
    assert not batch.positions[padding].any()


def test_what_the_template_refuses_ends_the_preparation_with_its_line(tmp_path):
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(0), pair_of(1)])
    refusing = CHATML + "{%- if 'x' -%}{{- raise_exception('not today') -}}{%- endif -%}"
    refusing = refusing.replace("'x'", repr(pair_of(1)["chosen"]) + " in messages[-1].content")
    with pytest.raises(BadInput) as error:
        write_rows(tmp_path, template=("smollm2", refusing))
    assert str(error.value).startswith(f"{tmp_path}/prefs.jsonl:2: the chat template refuses")
    assert str(error.value).endswith("Nothing was trained. Correct or remove this preference")


def of_the_hub(monkeypatch, unusable):
    """Make the first preferences of the source such that may be unusable, and are."""
    from pipeline.data import preferences as reading

    def read(*args):
        for number, one in enumerate(reading.preferences(*args)):
            broken = f"user/prefs row {number + 1}: broken"
            yield replace(one, required=False, preference=broken) if number < unusable else one

    monkeypatch.setattr("tests.support.preference_files.preferences", read)


def test_an_unusable_pair_in_a_hundred_of_the_hub_is_counted_and_more_end_the_preparation(
    tmp_path, monkeypatch
):
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(n) for n in range(100)])
    with monkeypatch.context() as patch:
        of_the_hub(patch, 1)
        summary = write_rows(tmp_path, out="counted")
    assert (summary.tally.read, summary.tally.refused) == (100, 1)
    assert summary.train.items + summary.held_out.items == 99
    of_the_hub(monkeypatch, 2)
    with pytest.raises(BadInput, match=r"2 of 100 preferences can't be used.*row 1: broken; user"):
        write_rows(tmp_path)


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize(
    "call",
    [
        *(1, 6, 13, 33, 35),
        *(pytest.param(call, marks=pytest.mark.soak) for call in (2, 3, 22, 32, 34)),
    ],
)
def test_after_an_interruption_the_counts_and_rows_are_the_same(tmp_path, monkeypatch, call):
    monkeypatch.setattr(preferences_to_rows, "BUFFER", 8)
    records = [pair_of(n, **({"chosen": ""} if n % 9 == 0 else {})) for n in range(64)]
    write_jsonl(tmp_path / "prefs.jsonl", records)
    how = {"shard_rows": 2, "held_out": 0.3}
    whole = write_rows(tmp_path, out="whole", **how)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.data.splits.mark", ends_at(call))
        with pytest.raises(KeyboardInterrupt):
            write_rows(tmp_path, out="broken", **how)
    assert write_rows(tmp_path, out="broken", **how) == whole
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")


def test_an_interrupted_call_does_not_encode_finished_buffers_again(tmp_path, monkeypatch):
    monkeypatch.setattr(preferences_to_rows, "BUFFER", 8)
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(n) for n in range(64)])
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.data.splits.mark", ends_at(30))
        with pytest.raises(KeyboardInterrupt):
            write_rows(tmp_path, shard_rows=1)
    done = len(list((tmp_path / "rows/pieces").glob("*.npz")))
    packed = []
    pack = preferences_to_rows.pack_buffer
    monkeypatch.setattr(
        preferences_to_rows, "pack_buffer", lambda *args: packed.append(0) or pack(*args)
    )
    write_rows(tmp_path, shard_rows=1)
    assert done >= 7
    assert len(packed) <= 8 - done + 1


@pytest.mark.parametrize("setting", ["held_out", "seed", "context"])
def test_rows_of_other_settings_are_written_again(tmp_path, setting):
    write_jsonl(tmp_path / "prefs.jsonl", [pair_of(n) for n in range(40)])
    other = {"held_out": 0.4, "seed": 7, "context": 60}[setting]
    write_rows(tmp_path)
    changed = write_rows(tmp_path, **{setting: other})
    assert changed == write_rows(tmp_path, out="fresh", **{setting: other})
    for name in (f"{split}/{name}" for split in SPLITS for name in ("manifest.json", SEQUENCES)):
        assert (tmp_path / "rows" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
