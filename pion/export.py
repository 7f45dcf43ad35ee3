"""Export a decoder as a folder that stock transformers can load, and verify the folder.

A stock architecture computes the model exactly (pion/exports/table.py), so the folder needs no
custom code. Embedding rows of ids that the tokenizer can't produce are dropped; evaluation and
generation don't use these rows either.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pion.data.conversation import chat_template
from pion.data.tokenizer import Tokenizer
from pion.errors import BadInput, PionError
from pion.exports.table import architecture_of, to_stock
from pion.load import load_decoder
from pion.model.decoder import Decoder

# The sampling defaults that are saved with a model.
GENERATION = {
    "do_sample": True,
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.9,
    "max_new_tokens": 128,
}
# The files of a published folder. `verify_export` reads the first six; the card has the last two.
EXPORT_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
    "loss.png",
)
# Marks a config.json as an export of Pion, for `is_export`. Transformers ignores this entry.
PRODUCER = {"producer": "pion"}
# The allowed difference of fp32 logits. Two correct implementations differ by about 1e-5.
MAX_LOGIT_DIFFERENCE = 1e-3
SAFE = "Don't use this export. The original checkpoint is safe."
# How many tokens of each text are compared. More tokens would not show more mistakes.
COMPARED_TOKENS = 512


def export_model(
    checkpoint: Path | Decoder,
    tokenizer_path: str | Path,
    out: str | Path,
    *,
    generation: Mapping[str, Any] | None = None,
    chat: bool = True,
) -> None:
    """Write `out`, a folder that `transformers.AutoModelForCausalLM` loads as a stock model.

    Weights are float32. `generation` overrides entries of `GENERATION`, the sampling defaults that
    are saved with the model. If the model learned our chat template (`chat`), the template is saved
    too. The folder appears whole or not at all, and replaces an earlier export.

    Raises:
        BadInput: the model has a softcap, the tokenizer has more ids than the model has rows, or
            `out` has files that this function did not write or can't be written.
    """
    out = Path(out)
    check_replaceable(out)
    model = checkpoint if isinstance(checkpoint, Decoder) else load_decoder(checkpoint)
    if model.config.softcap is not None:
        raise BadInput(
            f"softcap: a model that caps attention scores (at ±{model.config.softcap:g}) is not "
            "stock Qwen3 and can't be exported. Its checkpoint is safe; `pion chat` and "
            "`pion generate` can use the checkpoint directly."
        )
    tokenizer = Tokenizer.from_file(tokenizer_path)
    tokenizer.fits(model.config.vocab_size, where=str(tokenizer_path))
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_model(partial, model, tokenizer)
        _write_tokenizer(partial, tokenizer_path, tokenizer, model.config.seq_len)
        if chat:
            template = chat_template(tokenizer)
            (partial / "chat_template.jinja").write_text(template, encoding="utf-8")
        sampling = {**GENERATION, **(generation or {}), **_ids(tokenizer)}
        _write_json(partial / "generation_config.json", sampling)
        replace_folder(partial, out)
    except OSError as error:
        raise BadInput(
            f"{out}: can't write the export ({error.strerror or error}). The checkpoint is safe. "
            "Free some space, or name a different folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_export(folder: str | Path) -> bool:
    """Return whether Pion wrote the folder's config.json and the folder has no foreign files."""
    folder = Path(folder)
    if not {path.name for path in folder.iterdir()} <= set(EXPORT_FILES):
        return False
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return bool(config.items() >= PRODUCER.items())
    except (OSError, ValueError, AttributeError):
        return False


def check_replaceable(out: str | Path) -> None:
    """Raise BadInput unless `out` is absent, an empty folder or an earlier export."""
    out = Path(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise BadInput(f"{out} is a file. Name a folder for the model.")
    if any(out.iterdir()) and not is_export(out):
        foreign = sorted({path.name for path in out.iterdir()} - set(EXPORT_FILES))
        found = f" ({', '.join(foreign[:5])}{', …' if len(foreign) > 5 else ''})" if foreign else ""
        raise BadInput(
            f"{out} contains files that are not part of a Pion export{found}. Nothing was changed. "
            "Name a different folder, or move these files away."
        )


def replace_folder(new: Path, target: Path) -> None:
    """Rename `new` to `target`, and delete an existing `target` last.

    Between the two renames only `.{name}.previous` exists. If a call ends there, the next call
    restores it first.
    """
    previous = target.with_name(f".{target.name}.previous")
    if previous.exists() and not target.exists():
        previous.rename(target)
    shutil.rmtree(previous, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(previous)
    new.rename(target)
    shutil.rmtree(previous, ignore_errors=True)


def verify_export(
    out: str | Path, checkpoint: Path | Decoder, tokenizer_path: str | Path, texts: Sequence[str]
) -> float:
    """Reload `out` with transformers and compare it with the checkpoint on real text.

    Return the largest absolute difference between the two models' logits for the tokenizer's ids,
    in float32 on this machine.

    Raises:
        PionError: the folder doesn't load, isn't the expected stock model, tokenizes a text
            differently or gives logits that differ by more than `MAX_LOGIT_DIFFERENCE`, or there
            is no text to compare.
    """
    out = Path(out)
    ours = checkpoint if isinstance(checkpoint, Decoder) else load_decoder(checkpoint)
    tokenizer = Tokenizer.from_file(tokenizer_path)
    model, hf_tokenizer = _reload(out, architecture_of(ours.config).name)

    compared = [ids for text in texts if (ids := _same_ids(out, tokenizer, hf_tokenizer, text))]
    if not compared:
        raise PionError(f"{out}: there is no text to check the exported model with. {SAFE}")
    largest = 0.0
    with torch.inference_mode():
        for number, ids in enumerate(compared):
            tokens = torch.tensor([ids[: min(COMPARED_TOKENS, ours.config.seq_len)]])
            expected = ours(tokens)[..., : tokenizer.vocab_size].float()
            difference = (model(tokens).logits.float() - expected).abs()
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


def _reload(out: Path, architecture: str) -> tuple[Any, Any]:
    """Return the model and the tokenizer as transformers loads them. Raises PionError."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(
                out, dtype=torch.float32, trust_remote_code=False, local_files_only=True
            )
        tokenizer = AutoTokenizer.from_pretrained(
            out, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers may raise any exception
        raise PionError(
            f"{out}: transformers can't load the exported model "
            f"({type(error).__name__}: {str(error).strip() or 'no message'}). {SAFE}"
        ) from error
    if type(model).__name__ != architecture:
        raise PionError(
            f"{out}: transformers loads the model as {type(model).__name__}, not as "
            f"{architecture}. {SAFE}"
        )
    return model.eval(), tokenizer


def _same_ids(out: Path, tokenizer: Tokenizer, hf_tokenizer: Any, text: str) -> list[int]:
    """Return the ids of `text`. Raises PionError where the two tokenizers differ."""
    ours = tokenizer.encode(text)
    # In training, text that spells out a special token is plain text. A verbose tokenizer would
    # warn about a text longer than the model's context, but the models only read its beginning.
    theirs = hf_tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]
    if ours != theirs:
        pairs = enumerate(zip(ours, theirs))
        at = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
        raise PionError(
            f"{out}: the exported tokenizer differs from the trained tokenizer: at token {at} of "
            f"{text[:60]!r} it gives {theirs[at : at + 3]} instead of {ours[at : at + 3]}. {SAFE}"
        )
    return ours


def _write_model(folder: Path, model: Decoder, tokenizer: Tokenizer) -> None:
    from safetensors.torch import save_file

    config, weights = to_stock(model.config, model.state_dict(), vocab_size=tokenizer.vocab_size)
    config |= {**_ids(tokenizer), "dtype": "float32"}
    _write_json(folder / "config.json", config | PRODUCER)
    tensors = {name: tensor.float().contiguous().cpu() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(
    folder: Path, tokenizer_path: str | Path, tokenizer: Tokenizer, seq_len: int
) -> None:
    settings = json.loads(Path(tokenizer_path).read_text(encoding="utf-8"))
    # In training nothing was truncated, padded or added around a text.
    settings |= {"truncation": None, "padding": None, "post_processor": None}
    _write_json(folder / "tokenizer.json", settings)
    names = {token["id"]: token["content"] for token in settings["added_tokens"]}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": names[tokenizer.end_of_text],
            "pad_token": names[tokenizer.pad],
            "model_max_length": seq_len,
            "clean_up_tokenization_spaces": False,
        },
    )


def _ids(tokenizer: Tokenizer) -> dict[str, int]:
    return {"eos_token_id": tokenizer.end_of_text, "pad_token_id": tokenizer.pad}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
