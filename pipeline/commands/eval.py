"""`pion eval`: measure the parts that a command line names, such as the user's own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pion.data.documents.file_to_documents import (
    Span,
    json_lines,
    jsonl_records,
    record_documents,
)
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.evaluation.held_out import Scorer, calibrate, score, summarize
from pion.evaluation.multiple_choice import multiple_choice
from pion.evaluation.one_text_per_row import own_rows
from pion.evaluation.questions import read_questions
from pion.model.decoder import Decoder
from pion.untrusted import read_file
from pipeline.commands.chat import tell_replaced
from pipeline.console.formats import measured, show
from pipeline.report.result_tables import calibration_in_brief
from pipeline.state.record_json import finite_json

TOKENS_AT_ONCE = 8192
# Of a text, which is tokenized as a whole.
LARGEST_TEXT = 1 << 30

# Measures one thing, and returns the result, and the result in words.
Part = Callable[[], tuple[dict[str, Any], str]]


def eval_parts(parts: Mapping[str, Part], *, as_json: bool) -> None:
    """Measure each part, by its name, and print its results.

    What was measured is printed also if a later part can't be.
    """
    results = {}
    try:
        for name, part in parts.items():
            results[name], in_words = part()
            if not as_json:
                show(f"{name}: {in_words}")
    finally:
        if as_json and results:
            print(finite_json(results, indent=1))


def _has_texts(path: Path) -> bool:
    """Return whether the lines of a JSON Lines file are texts, by its first line."""
    _, first = next(json_lines(path), ("", None))
    return isinstance(first, dict) and "text" in first and "choices" not in first


def eval_file(model: Decoder, tokenizer: Tokenizer, path: Path) -> tuple[dict[str, Any], str]:
    """Measure a file, and say the result in words: the accuracy on questions, the loss on text."""
    rows_at_once = max(1, TOKENS_AT_ONCE // model.config.seq_len)
    lines = path.suffix == ".jsonl"
    if lines and not (path.is_file() and _has_texts(path)):
        scorer = Scorer(model, tokenizer.vocab_size, rows_at_once)
        record, _ = multiple_choice(scorer, tokenizer, read_questions(path))
        return record, (
            f"accuracy {record['accuracy']:.1%} ± {record['accuracy_sem']:.1%} "
            f"(chance {record['chance']:.1%}, {record['questions']:,} questions)"
        )
    texts = (
        [
            document.text
            for document in record_documents(jsonl_records([Span(path)], "eval"), "text", "eval")
        ]
        if lines
        else [_text_of(path)]
    )
    for text in texts:
        tell_replaced(tokenizer, text, str(path))
    measures = measure_texts(model, tokenizer, texts, rows_at_once)
    return measures, (
        f"bits per byte {measured(measures['bits_per_byte'], measures['bits_per_byte_sem'], 4)}, "
        f"loss {measured(measures['loss'], measures['loss_sem'], 4)}, perplexity "
        f"{measures['perplexity']:.2f} ({measures['tokens']:,} tokens, {measures['bytes']:,} "
        f"bytes), likeliest tokens {calibration_in_brief(measures['calibration'])}"
    )


def _text_of(path: Path) -> str:
    try:
        text = read_file(path, LARGEST_TEXT).decode()
        text = text.replace("\r\n", "\n").replace("\r", "\n")  # as Python reads text files
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't read this file as text ({error})") from None
    if not text.strip():
        raise BadInput(f"{path}: the file has no text")
    return text


def measure_texts(
    model: Decoder, tokenizer: Tokenizer, texts: Sequence[str], rows_at_once: int = 1
) -> dict[str, Any]:
    """Measure a model on documents, each of which is cut into rows as long as its context."""
    rows = own_rows(tokenizer, texts, model.config.seq_len)
    every = range(rows.total_rows)
    scores = score(Scorer(model, tokenizer.vocab_size, rows_at_once), rows, every)
    documents = rows.document_numbers(every, tokenizer.end_of_text)
    text = summarize(scores.nll, scores.targets, tokenizer.token_bytes(), documents)
    return {**text, "calibration": calibrate(scores, documents)}
