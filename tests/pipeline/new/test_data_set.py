"""What a look at data says, and that it is bounded."""

import pytest

from pipeline.new.data_set import in_words, look_at
from tests.pipeline.new.conftest import decided
from tests.support.own_data import bad_line, jsonl_texts, parquet_texts, write_lines


def look(path, limit=None):
    (data,) = decided(path, limit)
    look_at(data)
    return data


def test_it_counts_and_measures_all_of_small_data(tmp_path):
    data = look(jsonl_texts(tmp_path))
    assert (data.sample.whole, data.all_records) == (True, 600)
    first, second, third, fourth = in_words(data)
    assert first.endswith("all of it looked at")
    assert second.startswith("600 documents, ")
    assert third == "language, roughly: English 100%"
    assert fourth == "read as text. Not used: id"


def test_it_names_the_columns_that_are_read_of_turns(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    record = {"messages": turns, "conversations": None, "prompt": "a text", "system": "Be short."}
    *_, last = in_words(look(write_lines(tmp_path / "t.jsonl", [record] * 9)))
    assert last == "read as conversations: messages, system"


@pytest.mark.parametrize("write", [jsonl_texts, parquet_texts])
def test_of_more_data_it_looks_at_a_part_and_says_so(tmp_path, write):
    path = write(tmp_path, 4000)
    whole, part = look(path), look(path, path.stat().st_size // 8)
    assert not part.sample.whole
    assert len(part.contents) < 0.5 * len(whole.contents)
    assert part.all_records == pytest.approx(whole.all_records, rel=0.1)
    assert part.all_text_bytes == pytest.approx(whole.all_text_bytes, rel=0.1)
    first, second, *_ = in_words(part)
    assert "Looked at the first part of 1 file" in first
    assert second.startswith("≈ ")


def test_many_files_are_looked_at_at_even_distances(tmp_path):
    for number in range(200):
        write_lines(tmp_path / f"{number:03}.jsonl", [{"text": f"{number} {n}"} for n in range(30)])
    part = look(tmp_path, 20_000)
    assert len(part.sample.files) == 64
    assert part.all_records == pytest.approx(6000, rel=0.2)


def test_short_texts_are_guessed_together(tmp_path):
    asked = ["What is 2 + 3?", "Name a colour.", "Who is it?", "Why no com?", "The sum of 4?"] * 8
    lines = [{"text": f"{text} Question {n}."} for n, text in enumerate(asked)]
    assert dict(look(write_lines(tmp_path / "t.jsonl", lines)).languages).keys() == {"English"}
    few = look(write_lines(tmp_path / "few.jsonl", lines[:3]))
    assert few.languages == {"English": 1}


def test_copies_and_blanks_and_what_can_t_be_read_are_counted(tmp_path):
    texts = ["a text of words", "another text", "a text of words", " "]
    data = look(write_lines(tmp_path / "t.jsonl", [{"text": text} for text in texts]))
    assert (len(data.contents), data.blank) == (3, 1)
    assert any(line.startswith("twice: 1 of 3 (33.3%)") for line in in_words(data))
    data = look(bad_line(tmp_path))
    assert (len(data.problems), len(data.contents)) == (2, 38)
