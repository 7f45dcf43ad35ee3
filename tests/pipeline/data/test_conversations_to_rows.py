"""Conversations that a model's template can't use: skipped and counted, or the end."""

from functools import partial

import numpy as np
import pytest

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.messages import Conversation
from pion.data.tokens.token_bytes import ReplacedCharacters
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pipeline.data import conversations_to_rows
from pipeline.data.conversations_to_rows import pack_buffer, pack_here, write_conversation_rows
from pipeline.data.remarks import Remarks
from pipeline.data.source_reading import tokenizer_files
from pipeline.data.sources import Talk
from pipeline.data.splits import RowFormat, Splits
from pipeline.data.tasks import InThisProcess
from pipeline.data.text_to_rows import write_document_rows
from tests.support.chat_templates import MISTRAL
from tests.support.interrupted import ends_at
from tests.support.piece_corpora import change_piece, hashes_of
from tests.support.tokenizer_kinds import tokenizer_of, write_files

pytestmark = pytest.mark.usefixtures("quick_renderer")

ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def talks(unusable, required=0):
    """Yield 300 conversations, some of which the template refuses or nobody can read."""
    for number in range(300):
        where = f"some/talks, row {number}"
        first = [ANSWERED] if number in unusable else []
        talk = Conversation([*first, ASKED, ANSWERED], None, where)
        if number in unusable and number % 2:
            talk = f"{where}: turn 1 has the unknown role 'robot'"
        yield number % 10 == 9, Talk(talk, required=number < required)


def written(folder, *args):
    """Write the rows of `talks(*args)` below `folder`; return what was counted."""
    return rows_of(talks(*args), folder, MISTRAL)


def rows_of(read, folder, template, tasks=None):
    model = write_files("llama3", folder / "model", template)
    tokenizer = Tokenizer.from_file(model / "tokenizer.json")
    written = ChatFormat(model / "tokenizer.json", tokenizer)
    pack = partial(InThisProcess().map, pack_here, (written, 64))
    if tasks is not None:
        pack = partial(tasks.map, pack_buffer, (tokenizer_files(model), 64))
    rows, progress = RowFormat(64, 8, "key"), ("pack", lambda message: None)
    vocab_size, place = tokenizer.vocab_size, folder / "rows"
    return write_conversation_rows(read, pack, vocab_size, place, rows, progress)


def test_a_few_unusable_conversations_are_skipped_counted_and_named(tmp_path):
    report = written(tmp_path, {40, 41, 49})
    assert (report["train_refused"], report["held_out_refused"]) == (2, 1)
    assert report["train_conversations"] + report["held_out_conversations"] == 297
    first, second, third = report["refusals"]
    assert "row 40: the chat template refuses this conversation" in first
    assert "row 41: turn 1 has the unknown role 'robot'" in second
    assert "row 49" in third


def test_more_than_one_in_a_hundred_end_the_preparation(tmp_path):
    with pytest.raises(BadInput, match="4 of 300 conversations can't be used") as error:
        written(tmp_path, {40, 42, 44, 46})
    named = [f"row {number}" in str(error.value) for number in (40, 42, 44, 46)]
    assert named == [True, True, True, False]


def test_system_messages_that_the_template_leaves_out_are_said(tmp_path):
    told = {"role": "system", "content": "Be brief."}
    drops = MISTRAL.replace("messages -%}", "messages | rejectattr('role', 'eq', 'system') -%}")
    read = (
        (number % 4 == 0, Talk(Conversation([*first, ASKED, ANSWERED], None, "f"), required=True))
        for number, first in enumerate([[told], [], [told], []] * 6)
    )
    remarks = Remarks(ReplacedCharacters(None))
    remarks.note_counts(rows_of(read, tmp_path, drops), 64)
    (words,) = remarks.warnings()
    assert words.startswith("12 of 12 system messages are not in the text")


def test_elsewhere_the_template_gives_the_same_rows_and_the_same_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr(conversations_to_rows, "BUFFER", 16)
    here = written(tmp_path / "here", {40, 41, 49})
    there = rows_of(talks({40, 41, 49}), tmp_path / "there", MISTRAL, InThisProcess())
    assert there == here
    files = hashes_of(tmp_path / "here/rows")
    assert len(files) > 8
    assert hashes_of(tmp_path / "there/rows") == files
    with pytest.raises(BadInput, match=r"row 40: the chat template refuses.*Nothing was trained"):
        rows_of(talks({40}, 41), tmp_path / "mistake", MISTRAL, InThisProcess())


def test_after_an_interruption_the_counts_and_rows_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(conversations_to_rows, "BUFFER", 16)
    whole = written(tmp_path / "whole", {40, 41, 49})
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.data.splits.mark", ends_at(20))
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path / "broken", {40, 41, 49})
    assert 0 < len(list((tmp_path / "broken/rows/pieces").glob("*.npz"))) < 17
    assert written(tmp_path / "broken", {40, 41, 49}) == whole
    assert hashes_of(tmp_path / "broken/rows") == hashes_of(tmp_path / "whole/rows")


@pytest.mark.parametrize("change", [{"split_of": "both"}, {"tokens": "many"}, {"cut": None}])
def test_counts_that_nobody_wrote_are_counted_again(tmp_path, change):
    whole = written(tmp_path, {40})
    change_piece(tmp_path / "rows", 0, change)
    assert written(tmp_path, {40}) == whole


# ---------------------------------------------------------------- documents


def rows_of_texts(folder, tokenizer, texts):
    """Return the ids of the training rows, in order."""
    documents = [(False, text) for text in texts]
    rows = RowFormat(seq_len=1, shard_rows=1000, key="k")
    write_document_rows(documents, tokenizer, folder, rows, ("a test", lambda _: None))
    (shard,) = (folder / "train").glob("shard*.npy")
    return np.load(shard).ravel().tolist()


@pytest.mark.parametrize("kind", ["llama3", "gpt2"])
def test_a_first_token_starts_every_document_and_the_separator_ends_it(tmp_path, kind):
    tokenizer = tokenizer_of(kind)
    first = [] if tokenizer.first is None else [tokenizer.first]
    expected = []
    for text in ("a b", "c"):
        expected += [*first, *tokenizer.encode(text), tokenizer.end_of_text]
    assert rows_of_texts(tmp_path, tokenizer, ["a b", "", "c"]) == expected


def test_shards_of_older_versions_which_counted_documents_are_written_again(tmp_path):
    tokenizer = tokenizer_of("gpt2")
    ids = rows_of_texts(tmp_path / "fresh", tokenizer, ["a b", "c"])
    before = Splits(tmp_path / "old", RowFormat(1, 1000, "k"), tokenizer.vocab_size)
    before.writers["train"].append_documents(np.zeros(1000, np.int64), np.ones(1000, np.int64))
    assert rows_of_texts(tmp_path / "old", tokenizer, ["a b", "c"]) == ids
