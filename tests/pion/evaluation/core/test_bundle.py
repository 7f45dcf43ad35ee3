"""A bundle is read from a folder or an archive; each mistake in it is one BadInput."""

import json

import pytest

from pion.errors import BadInput
from pion.evaluation.core.bundle import read_bundle
from tests.support.core_bundle import (
    BASELINES,
    TASKS,
    choice_lines,
    items,
    schema_lines,
    word_lines,
    write_bundle,
    zip_bundle,
)

CHOICES, SCHEMA, WORDS = (task["dataset_uri"] for task in TASKS)


def refused(path):
    with pytest.raises(BadInput) as error:
        read_bundle(path)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(f"{path}/", "").replace(str(path), "BUNDLE")


def test_tasks_items_and_baselines_are_read(made_up):
    choice, schema, words = made_up.tasks
    assert (choice.label, choice.task_type, choice.shots) == (
        "made_up_choice",
        "multiple_choice",
        3,
    )
    assert [task.delimiter for task in made_up.tasks] == ["\nAnswer: ", " ", " "]
    assert [task.baseline for task in made_up.tasks] == [0.25, 0.5, 0.0]
    assert [len(task.items) for task in made_up.tasks] == [12, 12, 12]
    assert {item.options for item in choice.items} == {2, 3, 4}
    assert {item.options for item in schema.items} == {2, 3}
    assert {item.options for item in words.items} == {1}


@pytest.mark.parametrize("top", ["eval_bundle/", ""])
def test_an_archive_is_the_same_bundle_as_its_folder(top, made_up_folder, made_up, tmp_path):
    packed = read_bundle(zip_bundle(made_up_folder, tmp_path / "b.zip", top))
    assert (packed.tasks, packed.digest) == (made_up.tasks, made_up.digest)


def test_the_folder_may_be_the_one_around_the_bundle(tmp_path, made_up):
    write_bundle(tmp_path / "eval_bundle")
    assert read_bundle(tmp_path).digest == made_up.digest


def test_the_digest_is_of_what_is_asked(tmp_path, made_up):
    folder = write_bundle(tmp_path)
    (folder / "eval_data" / "other.jsonl").write_text("{}")
    assert read_bundle(folder).digest == made_up.digest
    with (folder / "eval_data" / WORDS).open("a") as file:
        file.write("\n")  # a blank line is no item, but another file
    changed = read_bundle(folder)
    assert changed.digest != made_up.digest
    assert changed.tasks[2].items == made_up.tasks[2].items


CONFIGS = [
    ("", "core.yaml: no tasks: expected a list under the key icl_tasks"),
    ("tasks: []", "core.yaml: no tasks: expected a list under the key icl_tasks"),
    ("icl_tasks: []", "core.yaml: no tasks: expected a list under the key icl_tasks"),
    ("icl_tasks:\n- [", "core.yaml line 2, column 4: not YAML: "),
    ("icl_tasks:\n- \0", "core.yaml line 2, column 3: not YAML: "),
    ("icl_tasks: &a [*a]", "core.yaml line 1, column 16: an alias contains itself"),
    ("icl_tasks:\n- 3", "core.yaml:2: expected a task with label and icl_task_type, found 3"),
    ("icl_tasks:\n- {label: 3}", "core.yaml:2: label is 3; expected a name"),
    ('icl_tasks:\n- {label: "a\\eb"}', "core.yaml:2: label is 'a\\x1bb'; it has characters"),
    ("icl_tasks:\n" + "- {}\n" * 201, "core.yaml: 201 tasks; at most 200 are read"),
]


@pytest.mark.parametrize(("text", "expected"), CONFIGS, ids=range(len(CONFIGS)))
def test_a_core_yaml_that_lists_no_tasks(text, expected, tmp_path):
    folder = write_bundle(tmp_path)
    (folder / "core.yaml").write_text(text)
    assert refused(folder).startswith(expected)


CHANGES = [
    (
        {"icl_task_type": "multi_choice"},
        "core.yaml:3: made_up_schema: icl_task_type is 'multi_choice'; expected one of "
        "multiple_choice, schema, language_modeling; did you mean 'multiple_choice'?",
    ),
    (
        {"num_fewshot": []},
        "core.yaml:3: made_up_schema: num_fewshot is []; expected a list with a whole number from "
        "0 to 64",
    ),
    ({"num_fewshot": 10}, "core.yaml:3: made_up_schema: num_fewshot is 10; expected a list"),
    ({"num_fewshot": [True]}, "core.yaml:3: made_up_schema: num_fewshot is [True]; expected"),
    ({"num_fewshot": [65]}, "core.yaml:3: made_up_schema: num_fewshot is [65]; expected"),
    (
        {"num_fewshot": [12]},
        "core.yaml:3: made_up_schema asks with 12 examples, so it needs 13 items or more. "
        "eval_data/schema/pronouns.jsonl has 12",
    ),
    ({"continuation_delimiter": None}, "core.yaml:3: made_up_schema: continuation_delimiter is"),
    ({"dataset_uri": ""}, "core.yaml:3: dataset_uri is ''; expected a name"),
    ({"dataset_uri": "../a"}, "BUNDLE: the file name 'eval_data/../a' leaves the bundle"),
    ({"dataset_uri": "/etc/passwd"}, "BUNDLE: the file name 'eval_data//etc/passwd' leaves the"),
    ({"dataset_uri": "none.jsonl"}, "BUNDLE: can't read eval_data/none.jsonl of this bundle ("),
    ({"label": "made_up_choice"}, "core.yaml:3: the label made_up_choice is also at core.yaml:2"),
    ({"label": "else"}, "core.yaml:3: the label else has no baseline in eval_meta_data.csv"),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=range(len(CHANGES)))
def test_a_task_that_can_not_be_asked(change, expected, tmp_path):
    folder = write_bundle(tmp_path, [TASKS[0], TASKS[1] | change, TASKS[2]])
    assert refused(folder).startswith(expected)


@pytest.mark.parametrize("baseline", ["100", "-1", "nan", "inf", "", "a quarter", "1e400"])
def test_a_baseline_that_nothing_can_be_centred_on(baseline, tmp_path):
    folder = write_bundle(tmp_path, baselines=BASELINES | {"made_up_schema": baseline})
    assert refused(folder) == (
        f"eval_meta_data.csv:3: the baseline of made_up_schema is {baseline!r}; expected a number "
        "of percent from 0 to below 100"
    )


def test_two_baselines_of_a_task_and_a_file_that_has_none(tmp_path):
    folder = write_bundle(tmp_path)
    file = folder / "eval_meta_data.csv"
    text = file.read_text()
    file.write_text(text + "made_up_schema,again,50\n")
    read_bundle(folder)  # the same number twice is one number
    file.write_text(text + "made_up_schema,again,51\n")
    expected = "eval_meta_data.csv:5: made_up_schema has another baseline in an earlier line"
    assert refused(folder) == expected
    file.write_text("Task,Baseline\n")
    assert refused(folder) == (
        "eval_meta_data.csv:1: no column 'Eval Task' or no column 'Random baseline'"
    )
    file.write_text("")
    assert refused(folder).startswith("eval_meta_data.csv:1: no column 'Eval Task'")
    file.write_text(text + f'"{"x" * 200_000}"\n')
    assert refused(folder).startswith("eval_meta_data.csv:5: not CSV: field larger than")


LINES = [
    (CHOICES, "{broken", "is not valid JSON (Expecting property name"),
    (CHOICES, [1], "not an item of multiple_choice: found a list instead of a JSON object"),
    (CHOICES, {}, "not an item of multiple_choice: no 'choices'; its keys: none"),
    (CHOICES, choice_lines()[0] | {"query": None}, "query is None; expected text"),
    (CHOICES, choice_lines()[0] | {"gold": 4}, "gold is 4; expected a whole number from 0 to 3"),
    (CHOICES, choice_lines()[0] | {"gold": -1}, "gold is -1; expected a whole number"),
    (CHOICES, choice_lines()[0] | {"gold": True}, "gold is True; expected a whole number"),
    (CHOICES, choice_lines()[0] | {"gold": 1.0}, "gold is 1.0; expected a whole number"),
    (CHOICES, choice_lines()[0] | {"gold": "1"}, "gold is '1'; expected a whole number"),
    (CHOICES, choice_lines()[0] | {"choices": ["a"]}, "choices is ['a']; expected 2 to 100 texts"),
    (CHOICES, choice_lines()[0] | {"choices": "ab"}, "choices is 'ab'; expected 2 to 100 texts"),
    (CHOICES, choice_lines()[0] | {"choices": ["a", 1]}, "choices has 1 in it; expected texts"),
    (CHOICES, choice_lines()[0] | {"choices": ["a", None]}, "choices has None in it; expected"),
    (CHOICES, choice_lines()[0] | {"choices": ["a"] * 101}, "expected 2 to 100 texts"),
    (SCHEMA, schema_lines()[0] | {"continuation": " "}, "continuation is empty"),
    (SCHEMA, schema_lines()[0] | {"context_options": ["a"]}, "expected 2 to 100 texts in a list"),
    (SCHEMA, schema_lines()[0] | {"gold": 2}, "gold is 2; expected a whole number from 0 to 1"),
    (WORDS, word_lines()[0] | {"continuation": ""}, "continuation is empty"),
    (WORDS, choice_lines()[0], "no 'continuation'; its keys: 'query, choices, gold'"),
]


@pytest.mark.parametrize(("name", "line", "expected"), LINES, ids=range(len(LINES)))
def test_a_line_that_is_no_item_is_named_by_file_and_line(name, line, expected, tmp_path):
    folder = write_bundle(tmp_path)
    lines = [json.dumps(one) for one in items()[name][:4]]
    text = line if isinstance(line, str) else json.dumps(line)
    (folder / "eval_data" / name).write_text("\n".join([*lines, "", text, *lines]))
    message = refused(folder)
    assert message.startswith(f"eval_data/{name}:6")
    assert expected in message


def test_files_that_are_not_utf8(tmp_path):
    for name in ("core.yaml", "eval_meta_data.csv", f"eval_data/{WORDS}"):
        folder = write_bundle(tmp_path / name.replace("/", "_"))
        (folder / name).write_bytes((folder / name).read_bytes() + b"\xff")
        message = refused(folder)
        assert message.startswith(name)
        assert "not UTF-8 text at byte" in message


def test_an_empty_file_of_items(tmp_path):
    folder = write_bundle(tmp_path, lines=items() | {SCHEMA: []})
    assert refused(folder).endswith("needs 1 items or more. eval_data/schema/pronouns.jsonl has 0")


def test_half_a_character_of_a_broken_writer_does_not_stop_the_reader(tmp_path):
    lines = [line | {"continuation": "a\ud800b"} for line in word_lines()]
    folder = write_bundle(tmp_path)
    (folder / "eval_data" / WORDS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_bundle(folder).tasks[2].items[0].continuations == ("a?b",)
