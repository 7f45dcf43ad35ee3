"""Which answer of another example a prompt gets, and that the row alone decides it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pion.data.order import RowOrder
from pion.data.preference.mismatched import (
    LOOKED_AT,
    MismatchedRows,
    Part,
    count_mismatched,
    mismatched,
    parts_of,
    require_mismatched,
)
from pion.data.row_flags import sequences_of
from pion.data.shards import IGNORED, Rows
from pion.data.stream import RowStream
from pion.errors import BadInput
from tests.support.preference_files import (
    label_of,
    pair_of,
    read_rows,
    write_jsonl,
    write_rows,
)


def part(prompt: str, answer: str) -> Part:
    ids = (np.array([ord(c) for c in text]) for text in (prompt, answer))
    return Part(*ids, np.ones(len(answer), dtype=bool))


def texts(made: Sequence[Part]) -> list[str]:
    return ["".join(map(chr, [*one.prompt, *one.answer])) for one in made]


def made_of(rows: Sequence[str], stride: int = 1, context: int = 9, room: int = 99) -> list[str]:
    """Return the mismatched sequences of the first row. A row is "Ab Cd": prompts and answers."""
    parts = [[part(word[0], word[1:]) for word in row.split()] for row in rows]
    order = range(len(rows))
    return texts(mismatched(lambda number: parts[number], order, stride, (context, room)))


def test_each_prompt_has_the_answer_of_the_next_one_and_the_last_that_of_the_first() -> None:
    assert made_of(["Aa Bb Cc", "Dd"]) == ["Ab", "Bc", "Ca"]


def test_the_sides_of_a_pair_have_answers_of_their_own_side() -> None:
    assert made_of(["Aa Ax Bb By Cc Cz"], stride=2) == ["Ab", "Ay", "Bc", "Bz", "Ca", "Cx"]


def test_a_prompt_alone_in_its_row_has_the_answer_of_the_next_row() -> None:
    assert made_of(["Aa", "Bb Cc"]) == ["Ab"]
    assert made_of(["Aa Ax", "Bb By"], stride=2) == ["Ab", "Ay"]


def test_the_answer_to_the_same_prompt_is_no_other_one() -> None:
    assert made_of(["Aa Ab Cc Ad", "Ee"]) == ["Ac", "Ac", "Cd", "Ac"]
    assert made_of(["Aa Ab", "Ac", "Dd"]) == ["Ad", "Ad"]


def test_an_answer_with_which_a_sequence_is_longer_than_the_context_is_left_to_others() -> None:
    assert made_of(["Aa Bbbbb Cc"], context=4) == ["Ac", "Bc", "Ca"]


def test_a_row_never_gets_longer_than_its_room() -> None:
    assert made_of(["Aa Ab", "Ccccc"], room=7) == ["Acccc"]


def test_a_prompt_without_any_answer_of_others_is_left_out() -> None:
    assert made_of(["Aa"]) == []
    assert made_of(["Aa", "Ab"]) == []
    assert made_of(["Aa", "Bbbbb"], context=3) == []


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)), min_size=2, max_size=9))
def test_different_prompts_in_a_row_each_lose_their_answer_and_keep_the_length(
    given_parts: list[tuple[int, int]],
) -> None:
    own = [part("p" * (1 + number) + str(n), "a" * n) for number, (_, n) in enumerate(given_parts)]
    made = mismatched(lambda _: own, [0], 1, (1000, 1000))
    assert [one.prompt.tolist() for one in made] == [one.prompt.tolist() for one in own]
    assert sorted(len(one.answer) for one in made) == sorted(len(one.answer) for one in own)
    assert all(one.answer is not other.answer for one, other in zip(made, own, strict=True))


# ---------------------------------------------------------------- rows in files


@pytest.fixture(scope="module", params=["pairs", "labels"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp(request.param)
    of = pair_of if request.param == "pairs" else label_of
    write_jsonl(made / "prefs.jsonl", map(of, range(40)))
    write_rows(made, shard_rows=6)
    return made


def places(rows: Rows) -> list[tuple[int, int]]:
    return [(s, r) for s, count in enumerate(rows.manifest.shard_rows) for r in range(count)]


def read(rows: Rows) -> list[list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Return the prompt and the learned answer of each sequence of each row."""
    found = []
    for row in (rows.row(*place) for place in places(rows)):
        assert row.documents is not None
        assert row.sides is not None
        sequences = []
        for number in range(len(row.sides)):
            inside = row.documents == number
            ids, learned = row.tokens[inside], (row.targets[inside] != IGNORED).sum()
            n = len(ids) - int(learned)
            sequences.append((tuple(ids[:n].tolist()), tuple(ids[n:].tolist())))
        found.append(sequences)
    return found


def test_rows_in_files_have_their_prompts_with_answers_to_others(folder: Path) -> None:
    rows = read_rows(folder, "train")
    own, others = read(rows), read(MismatchedRows(rows, 128))
    matched = {sequence for row in own for sequence in row}
    answers = {answer for _, answer in matched}
    assert len(own) == len(others) > 4
    for before, after in zip(own, others, strict=True):
        assert [prompt for prompt, _ in after] == [prompt for prompt, _ in before]
        assert not matched & set(after)
        assert {answer for _, answer in after} <= answers


def test_the_context_limits_each_sequence_and_positions_begin_again(folder: Path) -> None:
    rows = read_rows(folder, "train")
    longest = max(len(p) + len(a) for row in read(MismatchedRows(rows, 10**6)) for p, a in row)
    short = MismatchedRows(rows, longest - 1)
    assert all(len(p) + len(a) < longest for row in read(short) for p, a in row)
    for place in places(rows):
        row = short.row(*place)
        assert row.positions is not None
        assert row.positions.max() < longest


def test_a_row_has_the_same_sequences_whatever_is_read_with_it(folder: Path) -> None:
    """So ranks, micro-batches, skipped rows and epochs change no sequence and no number."""
    rows = read_rows(folder, "train")
    orders = [RowOrder(rows.manifest.shard_rows, rows.manifest.fingerprint, s, 2) for s in (0, 1)]
    one, other = (RowStream([(rows, order)]).of_mismatched(128) for order in orders)
    both = {}
    for stream in (one, other):
        for i in range(2 * stream.total_rows):
            number = stream.number_of(stream._locate(i))
            batch = stream.batch([i])
            assert batch.tokens.tolist() == both.setdefault(number, batch.tokens.tolist())
    assert len(both) == one.total_rows
    whole = one.batch(range(4))
    assert whole.tokens.tolist() == [one.batch([i]).tokens[0].tolist() for i in range(4)]


def test_its_numbers_of_a_reference_are_others_than_those_of_the_rows(folder: Path) -> None:
    rows = read_rows(folder, "train")
    order = RowOrder(rows.manifest.shard_rows, rows.manifest.fingerprint, 0, 2)
    stream = RowStream([(rows, order)])
    others = stream.of_mismatched(128)
    assert others.contents != stream.contents
    assert stream.mismatched is None
    assert stream.with_mismatched(others).mismatched is others


def test_the_rows_of_a_shard_are_divided_into_prompts_and_answers(folder: Path) -> None:
    ids, flags = read_rows(folder, "train").arrays(0)
    assert flags is not None
    whole = sequences_of(np.array(flags))
    found = [one for row in range(len(ids)) for one in parts_of(ids[row], flags[row])]
    lengths = [len(one.prompt) + len(one.answer) for one in found]
    assert lengths == whole.tokens.tolist()
    assert [int(one.learned.sum()) for one in found] == whole.targets.tolist()
    assert all(len(one.prompt) for one in found)


def test_a_search_for_another_prompt_ends(tmp_path: Path) -> None:
    """All prompts are the same, so no prompt has the answer to another one."""
    write_jsonl(tmp_path / "prefs.jsonl", [{**pair_of(n), "prompt": "Why?"} for n in range(30)])
    write_rows(tmp_path, held_out=1e-9, shard_rows=2 * LOOKED_AT)
    rows = read_rows(tmp_path, "train")
    read_parts: list[int] = []
    count = partial(_counted, read_parts)
    assert not mismatched(count, range(LOOKED_AT), 1, (99, 99))
    assert len(read_parts) <= LOOKED_AT + 1
    others = MismatchedRows(rows, 128)
    assert all(row == [] for row in read(others))
    assert count_mismatched([rows], 128) == 0


def test_preferences_with_few_answers_of_others_are_refused(folder: Path) -> None:
    rows = read_rows(folder, "train")
    count = sum(map(len, read(MismatchedRows(rows, 128))))
    assert count_mismatched([rows, rows], 128) == 2 * count > 0
    require_mismatched(50, 100, "here")
    with pytest.raises(BadInput, match=r"here: kto measures.*51 of 100 prompts have none"):
        require_mismatched(49, 100, "here")


def test_a_shard_of_one_prompt_has_no_answers_of_others(tmp_path: Path) -> None:
    """Rows of other shards may not be on this machine."""
    write_jsonl(tmp_path / "prefs.jsonl", map(pair_of, range(9)))
    write_rows(tmp_path, held_out=1e-9, shard_rows=1, seq_len=150)
    found = read(MismatchedRows(read_rows(tmp_path, "train"), 128))
    assert [] in found


def _counted(seen: list[int], number: int) -> list[Part]:
    seen.append(number)
    return [part("A", "a")]
