"""What records, files, chat templates and tokenizers refuse, by the rows of refusals.yaml."""

import json
from pathlib import Path
from typing import Any

from pion.data.chat.template_source import find_template, template_date, with_settings
from pion.data.documents.file_to_documents import (
    Span,
    jsonl_records,
    record_documents,
    text_documents,
)
from pion.data.documents.find_files import JSONL_SUFFIXES, TEXT_SUFFIXES, find_files
from pion.data.documents.unpack import opened
from pion.data.preference.layouts import parse_preference
from pion.data.prompt.layouts import parse_question
from pion.data.records.layouts import read_conversation
from pion.data.tokens.special_tokens import read_special_tokens
from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from tests.support.refusals import in_one_line, refusals
from tests.support.tokenizer_kinds import settings_of, starting, without_bytes, write_files

PLACE, KEY = "data.jsonl:3", "data.sources.0"


def conversation(record: object) -> None:
    with in_one_line(f"{PLACE}: "):
        read_conversation(record, PLACE)


def prompt(record: object) -> None:
    with in_one_line(f"{PLACE}: "):
        parse_question(record, PLACE)


def preference(record: object) -> None:
    with in_one_line(PLACE):
        parse_preference(record, PLACE)


def find(path: str) -> None:
    find_files(Path(path), TEXT_SUFFIXES, f"{KEY}.path")


def texts(path: str) -> None:
    files, _ = find_files(Path(path), TEXT_SUFFIXES, KEY)
    list(text_documents([Span(file) for file in files], "file", KEY))


def records(path: str) -> None:
    files, _ = find_files(Path(path), JSONL_SUFFIXES, KEY)
    list(record_documents(jsonl_records([Span(file) for file in files], KEY), "text", KEY))


def unpacked(path: str) -> None:
    with opened(Path(path)) as stream:
        stream.read()


def template_of(folder: str) -> None:
    find_template(Path(folder))


def template_day_of(folder: str) -> None:
    template_date(Path(folder))


def template_option(name: str) -> None:
    with_settings("", None, {name: 1}, [])


def special_tokens(files: dict[str, Any]) -> None:
    """Read the special tokens of Llama 3's folder, in which these files are others."""
    here = Path()
    written = {*here.iterdir()}
    write_files("llama3", here)
    try:
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            Path(name).write_text(text, encoding="utf-8")
        folder = here.absolute()
        with in_one_line(str(folder)):
            read_special_tokens(folder, Tokenizer.from_file(here / "tokenizer.json"))
    finally:
        for path in {*here.iterdir()} - written:
            path.unlink()


def tokenizer(kind: str, but: dict[str, Any]) -> None:
    """Read the tokenizer of this kind with other settings."""
    Tokenizer(json.dumps(settings_of(kind, **but)), "x")


def tokenizer_file(path: str) -> None:
    Tokenizer.from_file(path)


def first_ids(ids: list[int]) -> None:
    """Read a tokenizer that puts these ids before each text."""
    tokenizer("llama3", {"post_processor": starting(*ids)})


def vocabulary_without(missing: bytes) -> None:
    Tokenizer(json.dumps(without_bytes(missing=missing)), "x")


def train(texts: list[str], size: int = 300) -> None:
    train_bpe(texts, size)


RECORDS = conversation, prompt, preference
FILES = find, texts, records, unpacked
TEMPLATES = template_of, template_day_of, template_option
TOKENIZERS = special_tokens, tokenizer, tokenizer_file, first_ids, vocabulary_without, train
test_refusal = refusals(__file__, *RECORDS, *FILES, *TEMPLATES, *TOKENIZERS)
