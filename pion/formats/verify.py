"""Verify an export: load it with transformers, and compare it with the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import PionError
from pion.formats.export import exported_rows
from pion.formats.huggingface.architectures import Architecture, architecture_of
from pion.formats.huggingface.bundled_code import runs_only_our_code
from pion.formats.huggingface.tokenizer_files import ModelTokenizer, tokenizer_file
from pion.formats.load import load_decoder
from pion.model.decoder import Decoder

# The allowed difference of fp32 logits. Two correct implementations differ by about 1e-5.
MAX_LOGIT_DIFFERENCE = 1e-3
SAFE = "Don't use this export. The original checkpoint is safe."
# How many tokens of each text are compared. More tokens would not show more mistakes.
COMPARED_TOKENS = 512


def verify_export(
    out: str | Path,
    checkpoint: Path | Decoder,
    tokenizer_path: str | Path | ModelTokenizer,
    texts: Sequence[str],
    *,
    model_type: str | None = None,
) -> float:
    """Reload `out` with transformers and compare it with the checkpoint on real text.

    Return the largest absolute difference between the two models' logits for the exported rows, in
    float32 on this machine. Modelling files run only if they are exactly those that
    `export_model` writes.

    Raises:
        PionError: the folder has other modelling files, doesn't load, isn't of the expected
            architecture, tokenizes a text differently or gives logits that differ by more than
            `MAX_LOGIT_DIFFERENCE`, or there is no text to compare.
    """
    out = Path(out)
    ours = checkpoint if isinstance(checkpoint, Decoder) else load_decoder(checkpoint)
    ours = ours.alone()
    tokenizer = Tokenizer.from_file(tokenizer_file(tokenizer_path))
    capped = ours.config.softcap is not None
    model, hf_tokenizer = _reload(out, architecture_of(ours.config, model_type), capped=capped)

    compared = [ids for text in texts if (ids := _same_ids(out, tokenizer, hf_tokenizer, text))]
    if not compared:
        raise PionError(f"{out}: there is no text to check the exported model with. {SAFE}")
    largest, rows = 0.0, exported_rows(ours.config, tokenizer)
    with torch.inference_mode():
        for number, ids in enumerate(compared):
            tokens = torch.tensor([ids[: min(COMPARED_TOKENS, ours.config.seq_len)]])
            difference = (model(tokens).logits.float() - ours(tokens)[..., :rows].float()).abs()
            worst = difference.max().item()
            if not worst <= MAX_LOGIT_DIFFERENCE:  # not `>`: a NaN must not pass
                position, row = divmod(int(difference.argmax()), difference.shape[-1])
                raise PionError(
                    f"{out}: the exported model gives different logits than the trained model. "
                    f"At text {number}, position {position}, token {row}, they differ by "
                    f"{worst:.3g} (allowed: {MAX_LOGIT_DIFFERENCE:g}). {SAFE} Export the model "
                    "again. If the logits still differ, please report a bug."
                )
            largest = max(largest, worst)
    return largest


def _reload(out: Path, architecture: Architecture, *, capped: bool) -> tuple[Any, Any]:
    """Return the model and the tokenizer as transformers loads them, with `capped` scores or not.
    Raises PionError."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not architecture.stock and not runs_only_our_code(out):
        raise PionError(
            f"{out}: its modelling files are not those that this version of Pion writes, so they "
            f"were not run. {SAFE} Export the model again."
        )
    options = {"trust_remote_code": not architecture.stock, "local_files_only": True}
    # transformers caps scores in this way of attention alone.
    eager = {"attn_implementation": "eager"} if capped and architecture.stock else {}
    try:
        with _no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(
                out, dtype=torch.float32, **options, **eager
            )
        tokenizer = AutoTokenizer.from_pretrained(out, **options)
    except Exception as error:  # transformers may raise any exception
        raise PionError(
            f"{out}: transformers can't load the exported model "
            f"({type(error).__name__}: {str(error).strip() or 'no message'}). {SAFE}"
        ) from error
    if type(model).__name__ != architecture.name:
        raise PionError(
            f"{out}: transformers loads the model as {type(model).__name__}, not as "
            f"{architecture.name}. {SAFE}"
        )
    return model.eval(), tokenizer


def _same_ids(out: Path, tokenizer: Tokenizer, hf_tokenizer: Any, text: str) -> list[int]:
    """Return the ids of `text`. Raises PionError where the two tokenizers differ."""
    text = tokenizer.spelled(text)
    ours = tokenizer.encode(text)
    # In training, text that spells out a special token is plain text. A verbose tokenizer would
    # warn about a text longer than the model's context, but the models only read its beginning.
    options = {"split_special_tokens": True, "verbose": False}
    theirs = hf_tokenizer(text, add_special_tokens=False, **options)["input_ids"]
    if ours != theirs:
        pairs = enumerate(zip(ours, theirs))
        at = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
        raise PionError(
            f"{out}: the exported tokenizer differs from the trained tokenizer: at token {at} of "
            f"{text[:60]!r} it gives {theirs[at : at + 3]} instead of {ours[at : at + 3]}. {SAFE}"
        )
    if tokenizer.first not in (None, *hf_tokenizer(text, **options)["input_ids"][:1]):
        raise PionError(
            f"{out}: the exported tokenizer does not put its first token, {tokenizer.first}, "
            f"before a text, as the trained tokenizer does. {SAFE}"
        )
    return ours


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging

    shown, hub_hidden = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
        if hub_hidden:
            disable_progress_bars()  # transformers' switch turns the Hub's bars on as well
