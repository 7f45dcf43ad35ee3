"""Export a decoder as a folder that transformers can load, and round it before.

If a stock architecture computes the model exactly (pion/formats/huggingface/architectures.py), the
folder needs no custom code. Otherwise the folder has modelling files. Embedding rows of ids that
the tokenizer can't produce are dropped, unless the model is an import (`ModelConfig.imported`).
Evaluation and generation don't use these rows either.

bfloat16 has 8 bits of precision, so it swallows changes of a weight below 0.4 %. LoRA's additions
are often that small. So whoever publishes a rounded model says what it lost.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pion.config.model_config import ModelConfig
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.formats.huggingface.architectures import Architecture, architecture_of, to_transformers
from pion.formats.huggingface.bundled_code import modelling_files
from pion.formats.huggingface.tokenizer_files import (
    ModelTokenizer,
    stop_and_pad,
    tokenizer_file,
    write_json,
    write_tokenizer,
)
from pion.formats.load import load_decoder, packed
from pion.formats.model_tensors import saved_model_tensors
from pion.formats.target_folder import FOLDERS, PRODUCER, check_replaceable, replace_folder
from pion.formats.weights import write_safetensors
from pion.model.decoder import Decoder
from pion.model.parameters import tensors_sha256, vocabulary_rows
from pion.model.saved_weights import Tensors

# The sampling defaults that are saved with a model.
GENERATION = {
    "do_sample": True,
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.9,
    "max_new_tokens": 128,
}
# What a model of others keeps of its generation_config.json, next to its ids.
_SAMPLING = (*GENERATION, "min_p", "repetition_penalty")


def export_model(
    checkpoint: Path | Decoder,
    tokenizer_path: str | Path | ModelTokenizer,
    out: str | Path,
    *,
    generation: Mapping[str, Any] | None = None,
    chat: bool = True,
    model_type: str | None = None,
) -> None:
    """Write `out`, a folder that `transformers.AutoModelForCausalLM` loads.

    Weights are bfloat16 if the decoder's are. Otherwise they are float32, but rows of token ids are
    bfloat16 where this changes nothing (`round_to_bfloat16`). `generation` overrides entries of
    the sampling defaults that are saved with the model: `GENERATION`, or those of a model of
    others. If the model learned our chat template (`chat`), the template is saved too. A
    `ModelTokenizer` is exported with the files that it came with. `model_type` asks for an
    architecture of pion/formats/huggingface/architectures.py. A part that changes nothing in the
    model gets a folder in it. The folder appears whole or not at all, and replaces an earlier one.

    Raises:
        BadInput: the architecture `model_type` can't compute the model, the tokenizer has more ids
            than the model has rows, or `out` has files that this function did not write or can't be
            written.
    """
    out = Path(out)
    check_replaceable(out)
    model = checkpoint if isinstance(checkpoint, Decoder) else load_decoder(checkpoint)
    architecture = architecture_of(model.config, model_type)
    tokenizer = Tokenizer.from_file(tokenizer_file(tokenizer_path))
    tokenizer.fits(model.config.vocab_size, where=str(tokenizer_file(tokenizer_path)))
    ids = stop_and_pad(tokenizer_path, tokenizer)
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        rows = exported_rows(model.config, tokenizer)
        _write_model(partial, model.alone(), architecture, rows, ids)
        _write_parts_apart(partial, model, rows)
        write_tokenizer(partial, tokenizer_path, model.config.seq_len, chat=chat)
        sampling = _sampling(tokenizer_path) | dict(generation or {}) | ids
        write_json(partial / "generation_config.json", sampling)
        replace_folder(partial, out)
    except OSError as error:
        raise BadInput(
            f"{out}: can't write the export ({error.strerror or error}). The checkpoint is safe, "
            "and no part of the export is left. Free some space, or name a different folder. Then "
            "run the same command again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_parts_apart(folder: Path, model: Decoder, rows: int) -> None:
    """Write the parts of the model that change nothing in it next to its files, which are there."""
    for name in FOLDERS.keys() & dict(model.named_children()).keys():
        settings, tensors = getattr(model, name).exported(rows)
        record = {
            name: settings,
            "d_model": model.config.d_model,
            "vocab_size": rows,
            "trunk_sha256": tensors_sha256(Tensors(saved_model_tensors(folder))),
        }
        record_path, tensors_path = (folder / name / file for file in FOLDERS[name])
        record_path.parent.mkdir()
        record_path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        write_safetensors(tensors_path, tensors, {"format": "pt"})


def _sampling(tokenizer: str | Path | ModelTokenizer) -> dict[str, Any]:
    """Return the sampling defaults. A model of others keeps its own, and gets none of ours."""
    if not isinstance(tokenizer, ModelTokenizer):
        return dict(GENERATION)
    # Without a length, transformers ends an answer after 20 tokens.
    settings = {
        name: tokenizer.generation[name] for name in _SAMPLING if name in tokenizer.generation
    }
    return {"max_new_tokens": GENERATION["max_new_tokens"], **settings}


def exported_rows(config: ModelConfig, tokenizer: Tokenizer) -> int:
    """Return how many embedding rows an export of the model with this tokenizer has."""
    return config.vocab_size if config.imported else tokenizer.vocab_size


def _write_model(
    folder: Path, model: Decoder, architecture: Architecture, rows: int, ids: Mapping[str, Any]
) -> None:
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    for name in vocabulary_rows(model):
        short = state[name].bfloat16()
        if torch.equal(short.float(), state[name]):
            state[name] = short
    config, weights = to_transformers(*packed(model.config, state), rows, architecture.model_type)
    dtype = "float32"
    if model.embed.weight.dtype == torch.bfloat16:
        dtype, weights = "bfloat16", {name: t.bfloat16() for name, t in weights.items()}
    # Without a version, transformers warns that the tokenizer may be an old one of Mistral.
    version = {"dtype": dtype, "transformers_version": "5.0.0"}
    write_json(folder / "config.json", {**config, **ids, **version, **PRODUCER})
    write_safetensors(folder / "model.safetensors", weights, {"format": "pt"})
    if not architecture.stock:
        for name, text in modelling_files().items():
            (folder / name).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class RoundingCost:
    """What rounding changes, on the same text before and after it.

    Attributes:
        logits: the greatest absolute difference of two logits.
        before, after: bits per byte of the text.
        tokens: the tokens that were predicted.
    """

    logits: float
    before: float
    after: float
    tokens: int


def require_roundable(config: ModelConfig) -> None:
    """Raise BadInput for a model that needs its own code: that code keeps weights in fp32."""
    architecture = architecture_of(config)
    if not architecture.stock:
        raise BadInput(
            f"dtype: bfloat16 is for stock architectures, and this model is published as "
            f"{architecture.name}, with its code. Publish it in float32"
        )


def rounded(model: Decoder) -> Decoder:
    """Return a decoder in fp32 whose weights, gains included, have values of bfloat16, copied."""
    state = {
        name: tensor.bfloat16().float() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    return Decoder.from_state(model.config, state)


@torch.inference_mode()
def rounding_cost(
    model: Decoder, after: Decoder, tokenizer: Tokenizer, texts: Sequence[str]
) -> RoundingCost:
    """Return what differs between `model` and the rounded `after` on the beginning of each text.

    Both compute in fp32. Raises BadInput if no text has two tokens.
    """
    size, vocab_size = model.config.seq_len, tokenizer.vocab_size
    sizes = tokenizer.token_bytes()
    worst, nats, tokens, length = 0.0, [0.0, 0.0], 0, 0
    for text in texts:
        ids = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(text)][: size + 1]])
        given, targets = ids[:, :-1], ids[0, 1:]
        if not len(targets):
            continue
        logits: list[Tensor] = [m(given)[0, :, :vocab_size].float() for m in (model, after)]
        worst = max(worst, float((logits[0] - logits[1]).abs().max()))
        for number, model_logits in enumerate(logits):
            nats[number] += float(cross_entropy(model_logits, targets, reduction="sum"))
        tokens += len(targets)
        length += int(sizes[targets.numpy()].sum())
    if not length:
        raise BadInput("there is no text to measure the rounding on")
    before, rounded_bits = (total / math.log(2) / length for total in nats)
    return RoundingCost(worst, before, rounded_bits, tokens)
