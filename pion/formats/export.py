"""Export a decoder as a folder that transformers can load.

If a stock architecture computes the model exactly (pion/formats/huggingface/architectures.py), the
folder needs no custom code. Otherwise the folder has modelling files. Embedding rows of ids that
the tokenizer can't produce are dropped, unless the model is an import (`ModelConfig.imported`).
Evaluation and generation don't use these rows either.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pion.config import ModelConfig
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
from pion.formats.load import load_decoder
from pion.formats.packed_parts import packed
from pion.formats.target_folder import PRODUCER, check_replaceable, replace_folder
from pion.formats.weights import write_safetensors
from pion.model.decoder import Decoder
from pion.model.parameters import vocabulary_rows

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
    bfloat16 where this changes nothing: see `round_embeddings`. `generation` overrides entries of
    the sampling defaults that are saved with the model: `GENERATION`, or those of a model of
    others. If the model learned our chat template (`chat`), the template is saved too. A
    `ModelTokenizer` is exported with the files that it came with. `model_type` asks for an
    architecture of pion/formats/huggingface/architectures.py. The folder appears whole or not at
    all, and replaces an earlier export.

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
        _write_model(partial, model, architecture, rows, ids)
        write_tokenizer(partial, tokenizer_path, model.config.seq_len, chat=chat)
        sampling = {**_sampling(tokenizer_path), **(generation or {}), **ids}
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


def _sampling(tokenizer: str | Path | ModelTokenizer) -> dict[str, Any]:
    """Return the sampling defaults. A model of others keeps its own, and gets none of ours."""
    if not isinstance(tokenizer, ModelTokenizer):
        return dict(GENERATION)
    # Without a length, transformers ends an answer after 20 tokens.
    kept = {name: tokenizer.generation[name] for name in _SAMPLING if name in tokenizer.generation}
    return {"max_new_tokens": GENERATION["max_new_tokens"], **kept}


def exported_rows(config: ModelConfig, tokenizer: Tokenizer) -> int:
    """Return how many embedding rows an export of the model with this tokenizer has."""
    return config.vocab_size if config.imported else tokenizer.vocab_size


@torch.no_grad()
def round_embeddings(model: Decoder) -> None:
    """Round the rows of token ids, the head's too, to bfloat16, but keep them in their own dtype.

    An export of the model then has half as many bytes for them.
    """
    weights = model.state_dict()
    for name in vocabulary_rows(model):
        weights[name].copy_(weights[name].bfloat16())


def _write_model(
    folder: Path, model: Decoder, architecture: Architecture, rows: int, ids: Mapping[str, Any]
) -> None:
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = tensor.float()
    for name in vocabulary_rows(model):
        short = state[name].bfloat16()
        if torch.equal(short.float(), state[name]):
            state[name] = short
    config, weights = to_transformers(*packed(model.config, state), rows, architecture.model_type)
    dtype = "float32"
    if model.embed.weight.dtype == torch.bfloat16:
        dtype, weights = "bfloat16", {name: t.bfloat16() for name, t in weights.items()}
    config |= {**ids, "dtype": dtype}
    write_json(folder / "config.json", config | PRODUCER)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    if not architecture.stock:
        for name, text in modelling_files().items():
            (folder / name).write_text(text, encoding="utf-8")
