"""Reading documents and records from files, and how bad files are reported."""

import gzip
import json
import os
import struct

import pyarrow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pion.data.documents import file_to_documents
from pion.data.documents.file_to_documents import (
    PART_BYTES,
    SPELLED,
    ZEROS,
    Document,
    Span,
    jsonl_records,
    parquet_records,
    record_documents,
    separate,
    text_documents,
)
from pion.data.documents.find_files import (
    JSONL_SUFFIXES,
    PARQUET_SUFFIXES,
    TEXT_SUFFIXES,
    by_splits,
    find_files,
)
from pion.data.documents.unpack import is_packed, opened
from pion.errors import BadInput

KEY = "data.sources.0"


def spans(path, suffixes):
    return [Span(file) for file in find_files(path, suffixes, KEY)[0]]


def texts(path, split="file"):
    return [document.text for document in text_documents(spans(path, TEXT_SUFFIXES), split, KEY)]


def read_jsonl(path, field="text"):
    return [
        d.text
        for d in record_documents(jsonl_records(spans(path, JSONL_SUFFIXES), KEY), field, KEY)
    ]


def test_a_folder_is_read_in_sorted_order_and_only_text_files_of_it(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "sub" / "c.txt").write_text("third")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert texts(tmp_path) == ["first", "second", "third"]


def test_a_glob_names_files_of_any_ending(tmp_path):
    for name in ("2.log", "1.log", "3.txt"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path / "*.log") == ["1.log", "2.log"]


def test_a_file_that_links_lead_to_again_is_read_once_and_what_is_no_file_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "b.txt").symlink_to("a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path, tmp_path / "**" / "*.txt"):
        files, left_out = find_files(path, (".txt",), KEY)
        assert files == [tmp_path / "a.txt"]
        links, odd = left_out
        assert links.startswith("left out, read already by another name: ")
        assert links.endswith(f"such as {tmp_path}/b.txt")
        assert odd.startswith("left out, neither a file nor a folder: ")


def test_paragraphs_are_documents_when_asked(tmp_path):
    (tmp_path / "a.txt").write_text("one\nline\n\n  \n\ntwo\n\n\n")
    documents = list(text_documents(spans(tmp_path, TEXT_SUFFIXES), "paragraph", KEY))
    assert [d.text for d in documents] == ["one\nline", "two"]
    assert documents[1].origin == f"{tmp_path}/a.txt#2"


def test_a_file_larger_than_a_part_is_cut_at_line_breaks_and_nothing_is_lost(tmp_path):
    line = "Zeile mit Umlauten: äöü\n"
    content = line * (2 * PART_BYTES // len(line.encode()))
    (tmp_path / "big.txt").write_text(content)
    parts = texts(tmp_path)
    assert len(parts) > 1
    assert all(part.endswith("\n") for part in parts)
    assert "".join(parts) == content


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("between", ["\n\n", "\n", "\r\n\r\n"])
def test_the_end_of_a_file_is_no_document_of_its_own(tmp_path, between, end):
    text = between.join(("First.", "Second.", "Last.")) + end
    (tmp_path / "a.md").write_bytes(text.encode())
    assert texts(tmp_path) == [text]


def test_a_large_file_is_not_cut_behind_its_title(tmp_path, monkeypatch):
    monkeypatch.setattr(file_to_documents, "PART_BYTES", 40)
    content = "Title\n\n" + "a line of text\n" * 5 + "\nnext\n\n" + "more\n" * 4
    (tmp_path / "a.txt").write_text(content)
    parts = texts(tmp_path)
    assert "".join(parts) == content
    assert parts[0] == "Title\n\n" + "a line of text\n" * 2


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert texts(tmp_path) == ["hello"]


def test_endless_blank_lines_of_a_small_file_are_refused(tmp_path):
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"text": "one"}' + "\n" * 2_000 + '{"text": "two"}\n')
    with pytest.raises(BadInput, match=r"gz:1002: more than 1,000 bytes or .* are blank"):
        list(jsonl_records(spans(tmp_path, JSONL_SUFFIXES), "data.sources.0", 1_000))
    assert len(list(jsonl_records(spans(tmp_path, JSONL_SUFFIXES), "data.sources.0", 3_000))) == 2


def test_jsonl_is_read_line_by_line_and_gzip_too(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}')
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"text": "three"}\n')
    assert read_jsonl(tmp_path) == ["one", "two", "three"]


def test_parquet_rows_are_records_with_their_row_number(tmp_path):
    table = pa.table({"text": ["one", "two"], "turns": [[{"from": "human"}], []]})
    pq.write_table(table, tmp_path / "a.parquet")
    records = list(parquet_records(spans(tmp_path, PARQUET_SUFFIXES), KEY, ("text", "turns")))
    assert [r.value["text"] for r in records] == ["one", "two"]
    assert records[0].value["turns"] == [{"from": "human"}]
    assert records[1].origin == f"{tmp_path}/a.parquet row 2"


def test_a_column_of_a_table_may_be_numbers_of_texts(tmp_path):
    texts = pa.array(["one", "two", "one"]).dictionary_encode()
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    records = list(parquet_records(spans(tmp_path, PARQUET_SUFFIXES), KEY, ("text",)))
    assert [r.value["text"] for r in records] == ["one", "two", "one"]


def test_a_null_text_is_left_out_and_counted_like_a_blank_one(tmp_path):
    lines = ({"text": "a"}, {"text": None}, {"text": " "}, {"text": float("nan")}, {"text": "b"})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    blank = []
    records = jsonl_records(spans(tmp_path, JSONL_SUFFIXES), KEY)
    found = record_documents(records, "text", KEY, lambda *noted: blank.append(noted))
    assert [document.text for document in found] == ["a", "b"]
    assert blank == [
        ("records without text are left out", f"{tmp_path}/a.jsonl:{line}") for line in (2, 3, 4)
    ]


CUT, WINDOWS = "texts are cut where they", "texts have the line ends of Windows"
# What programs of others leave in texts: the documents that are learned, and what is said.
LEFT = {
    "a line between stories": ("a.\n<|endoftext|>\nb.\n", ["a.\n", "b.\n"], [CUT]),
    "no line": ("a.<|endoftext|>b.<|end_of_text|>", ["a.", "b."], [CUT]),
    "a first token": ("<|begin_of_text|>a<|end_of_text|><|begin_of_text|>b", ["a", "b"], [CUT]),
    "Llama 2": ("<s>a</s><s>    b</s>\n", ["a", "    b"], [CUT]),
    "Gemma": ("<bos>a<eos><bos>b<eos>", ["a", "b"], [CUT]),
    "a line of </s>": ("a\n</s>\nb", ["a\n", "b"], [CUT]),
    "HTML": ("<p><s>old</s> new</p>\n<s>a</s>\n<s>b</s> c", None, []),
    "in quotes": ("the token `<|endoftext|>`, or '</s>'", None, []),
    "Windows": ("a\r\n\r\nb\rc\r\n", ["a\n\nb\rc\n"], [WINDOWS]),
    "files joined": ("a\n\ufeffb\n", ["a\nb\n"], ["texts have marks of the byte order"]),
    "a cut file": ("a\n\0\0\0", ["a\n"], [ZEROS]),
    "zeros alone": ("\0\0", [], [ZEROS]),
    "both": ("a\r\n<|endoftext|>\r\nb\0", ["a\n", "b"], [WINDOWS, ZEROS, CUT]),
    "a chat": ("<|im_start|>user\nHi<|im_end|>", None, [SPELLED]),
    "Pion's own marks": ("<|user|>\nHi\n<|assistant|>\nYes\n", None, []),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_programs_of_others_leave_in_texts_is_read_as_they_mean_it_and_said(name):
    text, wanted, said = LEFT[name]
    noted = []
    found = list(separate(Document(text, "x:1", True), lambda *words: noted.append(words)))
    assert [document.text for document in found] == ([text] if wanted is None else wanted)
    assert all(document.held_out and document.origin == "x:1" for document in found)
    assert len(noted) == len(said)
    assert all(words.startswith(one) for (words, _), one in zip(noted, said))
    assert all(where.startswith("x:1") for _, where in noted)


# ---------------------------------------------------------------- which files are read


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def split(folder, *, records=True) -> tuple[list[str], list[str], str]:
    """Return the files that are read, those of them that are held out, and the words."""
    found = by_splits(folder, find_files(folder, JSONL_SUFFIXES, "data")[0], records=records)
    used = [path.relative_to(folder).as_posix() for path in found.files]
    held_out = sorted(path.relative_to(folder).as_posix() for path in found.held_out or ())
    return used, held_out, found.words


def test_hidden_files_and_copies_of_editors_are_left_out_and_said(tmp_path):
    make(tmp_path, "a.txt", "._a.txt", ".ipynb_checkpoints/a-checkpoint.txt", "__MACOSX/a.txt")
    files, (words,) = find_files(tmp_path, TEXT_SUFFIXES, "data")
    assert [file.name for file in files] == ["a.txt"]
    assert words.startswith("left out, hidden: 3, such as")


@pytest.mark.parametrize(
    ("names", "used", "held_out"),
    [
        (("train.jsonl", "valid.jsonl", "test.jsonl"), {0, 1}, {1}),
        (("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "dev.jsonl"), {0, 1, 2}, {2}),
        (("train/0.jsonl", "validation/0.jsonl", "test/0.jsonl.gz"), {0, 1}, {1}),
        (("chat_train.jsonl", "chat_eval.jsonl"), {0, 1}, {1}),
        (("train.jsonl", "test.jsonl"), {0}, set()),
        (("a.jsonl", "test.jsonl"), {0}, set()),
        (("a.jsonl", "the-test-of-time.jsonl"), {0, 1}, set()),
        (("test.jsonl",), {0}, set()),
        (("a.jsonl", "b.jsonl"), {0, 1}, set()),
    ],
)
def test_names_say_what_is_trained_on_and_what_is_held_out(tmp_path, names, used, held_out):
    got = split(make(tmp_path, *names))
    assert set(got[0]) == {names[n] for n in used}
    assert set(got[1]) == {names[n] for n in held_out}
    decided = bool(held_out) or len(used) < len(names)
    assert ("by their names" in got[2]) == decided


def test_a_file_that_is_named_is_read_whatever_its_name_is(tmp_path):
    file = make(tmp_path, "test.jsonl") / "test.jsonl"
    found = by_splits(file, find_files(file, JSONL_SUFFIXES, "data")[0], records=True)
    assert (found.files, found.held_out, found.words) == ((file,), None, "")


# ---------------------------------------------------------------- packed files


TEXT = b"A fox.\n" * 100


def read(file):
    with opened(file) as stream:
        return stream.read()


def zstd(data):
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def test_gzip_and_zstd_are_read_whatever_the_name_says(tmp_path):
    skipped = struct.pack("<II", 0x184D2A5F, 3) + b"abc"  # pzstd writes such frames first
    half = len(TEXT) // 2
    parts = skipped + zstd(TEXT[:half]) + skipped + zstd(TEXT[half:])
    for name, data in (
        ("a.txt", TEXT),
        ("b.txt", gzip.compress(TEXT)),
        ("c", zstd(TEXT)),
        ("d.zst", parts),
    ):
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name) == TEXT
        assert is_packed(tmp_path / name) == (data != TEXT)


# gzip writes the time into what it packs, so the bytes can't name a test.
@pytest.mark.parametrize("data", [gzip.compress(TEXT)[:-9], zstd(TEXT)[:-9]], ids=["gzip", "zstd"])
def test_a_packed_file_that_is_cut_off_is_named(tmp_path, data):
    (tmp_path / "a.gz").write_bytes(data)
    with pytest.raises(BadInput, match=r"a\.gz: damaged"):
        read(tmp_path / "a.gz")


def test_what_is_packed_twice_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(gzip.compress(gzip.compress(TEXT)))
    with pytest.raises(BadInput, match="packed twice"):
        read(tmp_path / "a.txt")


def test_text_with_a_byte_order_mark_or_zero_bytes_in_it_is_not_taken_for_utf_16(tmp_path):
    for data in (b"\xef\xbb\xbf" + TEXT, b"a\0b\0\n" + TEXT, json.dumps({"a": 1}).encode()):
        (tmp_path / "a.txt").write_bytes(data)
        assert read(tmp_path / "a.txt") == data
