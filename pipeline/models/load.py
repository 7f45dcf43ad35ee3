"""Load a found model and its tokenizer into memory; fit a model to the job that starts from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pion.config.model_config import APART, ModelConfig
from pion.errors import BadInput, told
from pipeline.models.find import FoundModel, found_in

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pion.data.chat.chat_format import ChatFormat
    from pion.data.tokens.tokenizer import Tokenizer
    from pion.model.decoder import Decoder
    from pion.model.saved_weights import Saved


def fitted(config: ModelConfig, saved: Saved, seed: int = 0) -> Saved:
    """Return the weights of `config` from those of a model that differs from it in its context,
    gates and parts that learn from a model. They are read when they are needed.

    Parts that only `config` has are new, and drawn with the `seed`.
    """
    from pion.model.saved_weights import Changed, placeholders

    state = _with_positions(config, placeholders(saved.layout()))
    state = _with_parts_apart(config, _with_gates(config, state), seed)
    taken = {name: tensor.shape for name, tensor in state.items() if tensor.is_meta}
    new = {name: tensor for name, tensor in state.items() if not tensor.is_meta}
    return Changed(saved, taken, new)


def _with_positions(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with as many learned positions as the model's context has tokens."""
    table = state.get("positions.weight")
    return state if table is None else state | {"positions.weight": table[: config.seq_len]}


def _with_gates(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the gates that the model has: its own if it learned them, or new."""
    from pion.model.feedforward.gates import Gate

    names = [f"blocks.{layer}.gate." for layer in range(config.n_layers)]
    if not config.gates:
        return {name: tensor for name, tensor in state.items() if not name.startswith(tuple(names))}
    new = Gate(config.d_model)
    return {prefix + name: t for prefix in names for name, t in new.state_dict().items()} | state


def _with_parts_apart(
    config: ModelConfig, state: dict[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """Return the weights with each part of the model that learns from it: with the part's own
    weights if they fit, or new ones."""
    import torch

    from pion.model.decoder import SHARED_PARTS
    from pion.model.parameters import draw_weights

    for name in APART:
        own = {key: state.pop(key) for key in list(state) if key.startswith(f"{name}.")}
        if getattr(config, name) is None:
            continue
        part = SHARED_PARTS[name][1](config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            draw_weights(part, config.init, config.init_std, config.tie_embeddings)
        new = {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
        same = {k: t.shape for k, t in own.items()} == {k: t.shape for k, t in new.items()}
        state |= own if same else new
    return state


def load_model_lazily(found: FoundModel) -> tuple[ModelConfig, Saved]:
    """Return the settings of a model, and its weights, which are read when they are needed.

    They are those of `load_model`, but have the types in the files. A seed is in memory. Raises
    BadInput as `load_model` does.
    """
    from pion.formats.load import load, load_adapter, load_lazily, trained_config
    from pion.formats.model_tensors import SavedTensors

    if found.kind == "seed":
        model, _ = load(found.folder)
        return model.config, SavedTensors.of(model.state_dict())
    if found.base is None:
        return load_lazily(found.folder)
    base = load_model_lazily(found.base)
    config = trained_config(found.folder)
    as_trained = base
    if config is not None and config != base[0]:
        as_trained = config, fitted(config, base[1])
    return load_adapter(found.folder, base, as_trained)


def load_model(found: FoundModel, dtype: torch.dtype | None = None) -> Decoder:
    """Load the weights into a Decoder on the CPU.

    `dtype` is that of matrices, by default float32. An adapter is merged with its base. Raises
    BadInput for other files, and for another base than an adapter's.
    """
    import torch

    from pion.model.decoder import Decoder
    from pion.model.saved_weights import Tensors

    config, saved = load_model_lazily(found)
    with told(f"{found.folder}: "):
        return Decoder.from_state(config, dict(Tensors(saved)), dtype or torch.float32)


def load_model_in(folder: Path) -> Decoder:
    """Load the model of a checkpoint's or an exported folder, with its base if it is an adapter."""
    return load_model(found_in(folder))


def load_tokenizer(found: FoundModel) -> Tokenizer:
    """Load the tokenizer. Raises BadInput if the model has none."""
    from pion.data.tokens.tokenizer import Tokenizer

    if found.tokenizer is None:
        raise BadInput(
            f"{found.label} has no tokenizer. Copy the tokenizer.json that the model was trained "
            f"with into {found.folder if found.folder.is_dir() else found.folder.parent}"
            + (
                f", or make a folder of both: pion import-seed {found.folder} DIR --tokenizer FILE"
                if found.kind == "seed"
                else ""
            )
        )
    return Tokenizer.from_file(found.tokenizer)


def load_found(found: FoundModel, dtype: torch.dtype | None = None) -> tuple[Decoder, ChatFormat]:
    """Load the model and its chat format, with its tokenizer; `dtype` as in `load_model`.

    Raises BadInput if they don't fit each other.
    """
    from pion.data.chat.chat_format import ChatFormat

    tokenizer = load_tokenizer(found)
    assert found.tokenizer is not None
    chat_format = ChatFormat(found.tokenizer, tokenizer)
    model = load_model(found, dtype)
    tokenizer.fits(model.config.vocab_size, where=str(found.tokenizer))
    return model, chat_format
