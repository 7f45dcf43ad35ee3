"""`pion eval`: measure a model on the user's own text files and multiple-choice packs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pion.data.shards import IGNORED
from pion.data.stream import Batch
from pion.data.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.evaluate import HeldOut, Scorer, summarize, token_nll
from pion.model.decoder import Decoder
from pion.multiple_choice import multiple_choice, read_questions
from pion.untrusted import read_file
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
    return dataclasses.asdict(text_loss(model, tokenizer, text, rows_at_once))


def text_loss(model: Decoder, tokenizer: Tokenizer, text: str, rows_at_once: int = 1) -> HeldOut:
    """Return the loss on one document.

    The document is cut into rows as long as the model's context, or is one shorter row. Rows don't
    see each other. As in training, an end-of-text token (or the tokenizer's first token) precedes
    the document, so each of its tokens is predicted once.
    """
    ids = np.array([tokenizer.before_document, *tokenizer.encode(text)], np.int64)
    seq_len = min(model.config.seq_len, max(1, len(ids) - 1))
    rows = -(-(len(ids) - 1) // seq_len)
    tokens = np.full((rows, seq_len), tokenizer.pad, np.int64)
    targets = np.full((rows, seq_len), IGNORED, np.int64)
    tokens.reshape(-1)[: len(ids) - 1], targets.reshape(-1)[: len(ids) - 1] = ids[:-1], ids[1:]
    nll = np.zeros(targets.shape)
    model.eval()
    with torch.inference_mode():
        for start in range(0, rows, rows_at_once):
            part = slice(start, start + rows_at_once)
            batch = Batch(
                torch.from_numpy(tokens[part]), torch.from_numpy(targets[part]), None, None
            )
            losses, _ = token_nll(model, batch, tokenizer.vocab_size, torch.float32)
            nll[part] = losses.cpu().numpy()
    return summarize(nll, targets, tokenizer.token_bytes())
