"""The text of a job is YAML that says what it should, whatever the data is called."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.new.data_set import Content, DataSet
from pipeline.new.files import Group
from pipeline.new.job_text import job_text, reward_for, scalar, source_of
from pipeline.new.read import Sample


@pytest.mark.parametrize(
    "text",
    [
        *("chats.jsonl", "my texts", "a: b", "# no", "{x}", "yes", "1e3", "null", " x", 'a"b\\'),
        *("é\n", "", "a\u2028name: x", "\x1b[31m", "😀: 1"),
    ],
)
def test_a_name_comes_back_as_it_was(text):
    assert yaml.safe_load(f"key: {scalar(text)}") == {"key": text}
    assert yaml.safe_load(f"[{{key: {scalar(text)}}}]") == [{"key": text}]
    assert "\n" not in scalar(text)


def look(path, kind="jsonl", stage="pretrain", columns=None, *, copied=False):
    sample = Sample(Group(kind, path, (path,)))
    contents = [Content("here", {}, ["a\n\nb\n\nc"])]
    columns = columns or {"text": "text"}
    return DataSet(sample, stage, columns, {}, copied, path, contents)


def test_a_source_names_the_files_from_the_folder_of_the_job(tmp_path):
    data = tmp_path / "data" / "t.jsonl"
    seen = look(data, columns={"body": "text"})
    expected = {"kind": "jsonl", "path": "data/t.jsonl", "field": "body"}
    assert source_of(seen, data, tmp_path) == expected
    assert source_of(seen, data, tmp_path / "jobs")["path"] == "../data/t.jsonl"
    assert source_of(seen, data, tmp_path / "a" / "b")["path"] == str(data)


@pytest.mark.parametrize(
    ("seen", "source"),
    [
        ({"kind": "csv", "columns": {"body": "text"}, "copied": True}, {"kind": "jsonl"}),
        ({"kind": "text"}, {"kind": "text", "split": "paragraph"}),
        ({"kind": "parquet", "stage": "sft"}, {"kind": "parquet"}),
    ],
)
def test_a_copy_has_the_usual_column_and_short_files_are_cut_into_paragraphs(
    seen, source, tmp_path
):
    assert source_of(look(tmp_path, **seen), tmp_path / "x", tmp_path) == {**source, "path": "x"}


LACKS = "1 right answers have no number"
REWARDS = [
    (["4", "#### 5"], "number", ""),
    (["4", "\\sqrt{2}"], "math", f"{LACKS}, the first at t.jsonl:2: "),
    (["4", "\\pi", "no"], "exact", f"{LACKS} or formula, the first at t.jsonl:3: "),
]


@pytest.mark.parametrize(("answers", "kind", "why"), REWARDS)
def test_the_reward_compares_with_all_answers_and_names_the_first_that_others_can_not(
    answers, kind, why
):
    contents = [Content(f"t.jsonl:{n}", {}, ["Why?"], "", a) for n, a in enumerate(answers, 1)]
    reward, reason = reward_for(contents)
    assert (reward, reason.startswith(why)) == (kind, True)


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_comment_never_becomes_a_part_of_what_is_read(value, comment):
    lines = [("# pion new " + comment, ""), (f"to: {scalar(value)}", comment), ("a: 1", comment)]
    assert yaml.safe_load(job_text(lines)) == {"to": value, "a": 1}
