"""`pion eval`: measure a model on the user's own text files and multiple-choice packs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pion.data.own_rows import own_rows
from pion.data.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.evaluate import HeldOut, Scorer, held_out
from pion.model.decoder import Decoder
from pion.multiple_choice import multiple_choice, read_questions
from pion.untrusted import read_file
from pipeline.commands.chat import tell_replaced
from pipeline.console.formats import show

TOKENS_AT_ONCE = 8192
# Of a text, which is tokenized as a whole.
LARGEST_TEXT = 1 << 30


def eval_files(
    model: Decoder, tokenizer: Tokenizer, files: Sequence[Path], *, as_json: bool
) -> int:
    """Print each file's results: the accuracy on a `.jsonl`, the loss on any other text."""
    results = {str(path): _eval_file(model, tokenizer, path) for path in files}
    if as_json:
        print(json.dumps(results, indent=1))
        return 0
    for name, r in results.items():
        if "accuracy" in r:
            show(
                f"{name}: accuracy {r['accuracy']:.1%} ± {r['accuracy_sem']:.1%} "
                f"(chance {r['chance']:.1%}, {r['questions']:,} questions)"
            )
        else:
            show(
                f"{name}: bits per byte {r['bits_per_byte']:.4f} ± {r['bits_per_byte_sem']:.4f}, "
                f"loss {r['loss']:.4f} ± {r['loss_sem']:.4f}, perplexity {r['perplexity']:.2f} "
                f"({r['tokens']:,} tokens, {r['bytes']:,} bytes)"
            )
    return 0


def _eval_file(model: Decoder, tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    rows_at_once = max(1, TOKENS_AT_ONCE // model.config.seq_len)
    if path.suffix == ".jsonl":
        scorer = Scorer(model, tokenizer.vocab_size, rows_at_once)
        return dataclasses.asdict(multiple_choice(scorer, tokenizer, read_questions(path)))
    try:
        text = read_file(path, LARGEST_TEXT).decode()
        text = text.replace("\r\n", "\n").replace("\r", "\n")  # as Python reads text files
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: can't read this file as text ({error})") from None
    if not text.strip():
        raise BadInput(f"{path}: the file has no text")
    tell_replaced(tokenizer, text, str(path))
    return dataclasses.asdict(text_loss(model, tokenizer, text, rows_at_once))


def text_loss(model: Decoder, tokenizer: Tokenizer, text: str, rows_at_once: int = 1) -> HeldOut:
    """Return the loss on one document, cut into rows as long as the model's context."""
    rows = own_rows(tokenizer, [text], model.config.seq_len)
    scorer = Scorer(model, tokenizer.vocab_size, rows_at_once)
    return held_out(
        scorer, rows, range(rows.total_rows), tokenizer.token_bytes(), tokenizer.end_of_text
    )
