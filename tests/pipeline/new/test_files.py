"""Which files a folder has for a job, and what is said of everything else."""

import json

import pytest

from pion.errors import BadInput
from pipeline.new.files import find_data
from tests.support.own_data import jsonl_texts, messages, texts_folder


def refusal(path):
    with pytest.raises(BadInput) as raised:
        find_data(path)
    return str(raised.value)


def test_files_of_a_kind_are_one_group(tmp_path):
    groups, left_out = find_data(texts_folder(tmp_path))
    assert [(group.kind, len(group.files)) for group in groups] == [("text", 12)]
    assert left_out == []
    jsonl_texts(tmp_path)
    assert [group.kind for group in find_data(tmp_path)[0]] == ["text", "jsonl"]


def test_what_is_not_read_is_named(tmp_path):
    texts_folder(tmp_path)
    (tmp_path / "my-texts" / "scan.pdf").write_bytes(b"%PDF")
    _, (words,) = find_data(tmp_path / "my-texts")
    assert words.startswith("left out, not read by Pion: 1 file .pdf, such as ")


def test_a_file_for_each_conversation_is_read_or_named_and_so_is_a_saved_data_set(tmp_path):
    for number, indent in enumerate((None, None, 1)):
        record = json.dumps({"messages": []}, indent=indent)
        (tmp_path / f"{number}.json").write_text(record)
    groups, (words,) = find_data(tmp_path)
    assert [(group.kind, len(group.files)) for group in groups] == [("json", 2)]
    assert words == f"left out, not read by Pion: 1 file .json, such as {tmp_path}/2.json"
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    assert "has no data: 1 file .arrow. Pion reads" in refusal(tmp_path / "saved")


def test_a_readme_and_settings_next_to_data_are_no_data(tmp_path):
    messages(tmp_path)
    (tmp_path / "settings.json").write_text('{\n "a": 1\n}\n')
    (tmp_path / "README.md").write_text("# My chats\n")
    groups, left_out = find_data(tmp_path)
    assert [group.kind for group in groups] == ["jsonl"]
    assert "left out, about the data: README.md" in left_out


def test_hidden_files_are_left_out_and_a_link_never_hides_the_file_that_it_leads_to(tmp_path):
    for name in ("a.txt", "b.jsonl", ".c.txt", ".d.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    (tmp_path / "a-newest").symlink_to("b.jsonl")
    groups, left_out = find_data(tmp_path)
    assert [file.name for group in groups for file in group.files] == ["a.txt", "b.jsonl"]
    assert [words.partition(", such as ")[0] for words in left_out] == [
        "left out, hidden: 1",
        "left out, hidden: 1",
        "left out, not read by Pion: 1 file without an ending",
    ]


def test_an_empty_folder_is_refused(tmp_path):
    assert f"{tmp_path} is empty: it has no files. Pion reads text" in refusal(tmp_path)


@pytest.mark.parametrize("readme", [False, True])
def test_a_folder_with_the_weights_of_a_model_is_refused(tmp_path, readme):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 8)
    if readme:
        (tmp_path / "README.md").write_text("# A model\n")
    said = refusal(tmp_path)
    assert "has the weights of a model (model.safetensors), not data" in said
    assert f"pion new DATA --from {tmp_path}" in said


def test_a_model_next_to_data_is_refused_with_its_folder(tmp_path):
    texts_folder(tmp_path)
    model = tmp_path / "models" / "mine"
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md"):
        (model / name).write_text("{}")
    assert f"has data, and a model in {model}. Give the folder" in refusal(tmp_path)


def test_a_folder_of_tokens_is_refused(tmp_path):
    (tmp_path / "shard_0.npy").write_bytes(b"\x93NUMPY")
    assert "has tokens, not text" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nothing", None, "nothing does not exist. Give a file or a folder."),
        ("book.pdf", b"%PDF", "Convert it to text first."),
        ("all.zip", b"PK\0\0", "Unpack it first."),
        ("picture.raw", b"\0\1\2", "is not text: it has zero bytes"),
    ],
)
def test_what_is_no_text_is_refused_with_what_to_do(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)


def test_a_text_of_another_ending_is_text_if_it_is_named(tmp_path):
    (tmp_path / "book.rst").write_text("A book.\n")
    (group,), _ = find_data(tmp_path / "book.rst")
    assert group.kind == "text"
