"""Which files a folder has for a job, and what is said of everything else."""

import json

import pytest

from pion.errors import BadInput
from pipeline.new.files import find_data


def written(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            (folder / name).symlink_to(content)
        else:
            (folder / name).write_bytes(content)


TEXT, LINE, OBJECT = b"A book.\n", b'{"text": "a"}\n', json.dumps({"messages": []}, indent=1)
NOT_READ = "left out, not read by Pion: 1 file "
# The files of each folder, the kinds that are read with their numbers of files, and how what is
# left out begins.
FOLDERS = {
    "text": ({"1.txt": TEXT, "b/2.md": TEXT}, {"text": 2}, []),
    "two kinds": ({"1.txt": TEXT, "2.jsonl": LINE}, {"text": 1, "jsonl": 1}, []),
    "a scan": ({"1.txt": TEXT, "s.pdf": b"%PDF"}, {"text": 1}, [f"{NOT_READ}.pdf, such as "]),
    "a file for each conversation": (
        {"0.json": LINE, "1.json": LINE, "2.json": OBJECT.encode()},
        {"json": 2},
        [f"{NOT_READ}.json, such as HERE/2.json"],
    ),
    "a readme and settings": (
        {"a.jsonl": LINE, "settings.json": b'{\n "a": 1\n}\n', "README.md": b"# My chats\n"},
        {"jsonl": 1},
        ["left out, about the data: README.md", f"{NOT_READ}.json"],
    ),
    # A link never hides the file that it leads to.
    "a link": ({"b.jsonl": LINE, "a": "b.jsonl"}, {"jsonl": 1}, [f"{NOT_READ}without an ending"]),
    "hidden files": (
        {"a.txt": TEXT, "b.jsonl": LINE, ".c.txt": TEXT, ".d.jsonl": LINE},
        {"text": 1, "jsonl": 1},
        ["left out, hidden: 1, ", "left out, hidden: 1, "],
    ),
}


@pytest.mark.parametrize(("files", "kinds", "left_out"), FOLDERS.values(), ids=FOLDERS)
def test_files_of_a_kind_are_one_group_and_what_is_not_read_is_named(
    files, kinds, left_out, tmp_path
):
    written(tmp_path, files)
    groups, notes = find_data(tmp_path)
    assert {group.kind: len(group.files) for group in groups} == kinds
    assert len(notes) == len(left_out)
    for note, beginning in zip(notes, left_out):
        assert note.startswith(beginning.replace("HERE", str(tmp_path)))


MODEL = {"config.json": b"{}", "model.safetensors": b"\0" * 8}
WEIGHTS = "has the weights of a model (model.safetensors), not data. To start from this model, name"
# The files of each folder, the one that is named, and what the refusal says.
REFUSED = {
    "nothing": ({}, "nothing", "nothing does not exist. Give a file or a folder."),
    "an empty folder": ({}, "", "HERE is empty: it has no files. Pion reads text"),
    "a saved data set": ({"0.arrow": b"ARROW1"}, "", "has no data: 1 file .arrow. Pion reads"),
    "a model": (MODEL, "", f"{WEIGHTS} your data first: pion new DATA --from HERE"),
    "a model with a readme": (MODEL | {"README.md": TEXT}, "", WEIGHTS),
    "the weights": (MODEL, "model.safetensors", WEIGHTS),
    "a model next to data": (
        {"1.txt": TEXT} | {f"models/mine/{name}": MODEL[name] for name in MODEL},
        "",
        "has data, and a model in HERE/models/mine. Give the folder",
    ),
    "tokens": ({"shard_0.npy": b"\x93NUMPY"}, "", "has tokens, not text"),
    "a file of tokens": ({"shard_0.bin": b"\0"}, "shard_0.bin", "has tokens, not text"),
    "a PDF": ({"book.pdf": b"%PDF-1.7"}, "book.pdf", "is a PDF, not UTF-8 text. Convert it"),
    "an archive": ({"all.7z": b"7z\xbc\xaf\x27\x1c"}, "all.7z", "Unpack it first"),
    "a table": ({"all.xlsx": b"PK\3\4"}, "all.xlsx", "or save it as text, CSV or parquet"),
    "records": ({"all.avro": b"Obj\1\4"}, "all.avro", "Convert it to parquet"),
    "zeros": ({"picture.raw": b"\0\1\2"}, "picture.raw", "is not text: it has zero bytes"),
}


@pytest.mark.parametrize(("files", "name", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_data_is_refused_with_what_to_do(files, name, said, tmp_path):
    written(tmp_path, files)
    with pytest.raises(BadInput) as raised:
        find_data(tmp_path / name)
    assert said.replace("HERE", str(tmp_path)) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [("book.rst", TEXT, "text"), ("B.TXT", TEXT, "text"), ("list.json.gz", b"[1]", "json")],
)
def test_a_file_that_is_named_is_read_by_what_it_has(name, content, kind, tmp_path):
    written(tmp_path, {name: content})
    ((group,), _) = find_data(tmp_path / name)
    assert group.kind == kind
