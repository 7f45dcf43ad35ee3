"""What a look at data says, and that it is bounded."""

import json

import pytest

from pipeline.new.decide import decide
from pipeline.new.files import find_data
from pipeline.new.layouts import Wishes
from pipeline.new.look import look_at
from pipeline.new.words import of_look
from tests.support.own_data import bad_line, jsonl_texts, parquet_texts, write_lines


def look(path, limit=None):
    (reading,) = decide(find_data(path), Wishes())
    return look_at(reading, limit)


def test_it_counts_and_measures_all_of_small_data(tmp_path):
    found = look(jsonl_texts(tmp_path))
    assert found.sample.whole
    assert found.all_records == 600
    first, second, third, *_ = of_look(found)
    assert first.endswith("all of it looked at")
    assert second.startswith("600 documents, ")
    assert third == "language, roughly: English 100%"


@pytest.mark.parametrize("write", [jsonl_texts, parquet_texts])
def test_of_more_data_it_looks_at_a_part_and_says_so(tmp_path, write):
    path = write(tmp_path, 4000)
    whole, part = look(path), look(path, path.stat().st_size // 8)
    assert not part.sample.whole
    assert part.records < 0.5 * whole.records
    assert part.all_records == pytest.approx(whole.all_records, rel=0.1)
    assert part.all_text_bytes == pytest.approx(whole.all_text_bytes, rel=0.1)
    first, second, *_ = of_look(part)
    assert "Looked at the first part of 1 file" in first
    assert second.startswith("≈ ")


def test_many_files_are_looked_at_at_even_distances(tmp_path):
    for number in range(200):
        write_lines(tmp_path / f"{number:03}.jsonl", [{"text": f"{number} {n}"} for n in range(30)])
    part = look(tmp_path, 20_000)
    assert part.sample.files == 64
    assert part.all_records == pytest.approx(6000, rel=0.2)


def test_short_texts_are_guessed_together(tmp_path):
    asked = ["What is 2 + 3?", "Name a colour.", "Who is it?", "Why no com?", "The sum of 4?"] * 8
    lines = [{"text": f"{text} Question {n}."} for n, text in enumerate(asked)]
    assert dict(look(write_lines(tmp_path / "t.jsonl", lines)).languages).keys() == {"English"}
    few = look(write_lines(tmp_path / "few.jsonl", lines[:3]))
    assert few.languages == {"English": 1}


def test_copies_and_blanks_are_counted(tmp_path):
    texts = ["a text of words", "another text", "a text of words", " "]
    found = look(write_lines(tmp_path / "t.jsonl", [{"text": text} for text in texts]))
    assert (found.records, found.twice, found.blank) == (3, 1, 1)
    assert any(line.startswith("twice: 1 of 3 (33.3%)") for line in of_look(found))


def test_what_can_t_be_read_is_counted_and_the_first_are_named(tmp_path):
    found = look(bad_line(tmp_path))
    assert (found.bad, len(found.problems), found.records) == (2, 2, 38)
    lines = [json.dumps({"text": "good words"}), *["{"] * 9]
    path = tmp_path / "worse.jsonl"
    path.write_text("\n".join(lines))
    assert (look(path).bad, len(look(path).problems)) == (9, 5)
