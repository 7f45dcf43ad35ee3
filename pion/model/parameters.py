"""The parameters of a model: what each is for, how it is first drawn, and what can be read as one.

The role of a parameter decides which optimizer updates it, and its weight decay. A part of the
model states the roles of its parameters where the shape does not tell:

    roles = {"router": "vector"}

The names are relative to the part, so a part may also state a role for a parameter of its children.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from pion.config.model_config import ModelConfig
from pion.config.parts import Role
from pion.errors import BadInput


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """Return the role of each parameter of `model`, by its name in the state dict."""
    stated: dict[str, Role] = {}
    by_shape: dict[str, Role] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, role in getattr(module, "roles", {}).items():
            stated.setdefault(prefix + name, role)
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                by_shape[prefix + name] = "embedding"
            else:
                by_shape[prefix + name] = "matrix" if parameter.ndim >= 2 else "vector"
    return {name: stated.get(name, by_shape[name]) for name, _ in model.named_parameters()}


def freeze(model: nn.Module, roles: Collection[Role]) -> None:
    """Let the parameters of these roles need no gradient."""
    for name, role in parameter_roles(model).items():
        if role in roles:
            model.get_parameter(name).requires_grad_(False)


def vocabulary_rows(model: nn.Module) -> list[str]:
    """Return the names of the parameters that have a row for each token id."""
    return [name for name, role in parameter_roles(model).items() if role in ("embedding", "head")]


# ---------------------------------------------------------------- initial weights

# The matrices that write into the residual stream, and the head.
OUTPUTS = ("o_proj", "down_proj", "lm_head")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def draw_weights(model: nn.Module, init: str, std: float, tied: bool) -> None:
    """Draw the weights of all layers, in the order of the modules. Norms and scalars stay.

    `normal`: every matrix and embedding from N(0, init_std²).

    `zero_outputs`, as in Daisy-Wee: matrices that write into the residual stream, and an untied
    head, are 0, so that a new model predicts every id with the same probability. Other matrices are
    uniform with the standard deviation ½ / √(input width), and embeddings from N(0, 1). A tied
    embedding and routers are from N(0, init_std²).

    `uniform`, as in PILON: attention's matrices are uniform with Xavier's variance (Glorot and
    Bengio 2010), and those of feed-forward layers within ±1 / √(input width). Embeddings are from
    N(0, init_std²).

    A part with `draw_weights(init, std)` draws its own parameters, but not those of its children.
    Gates are not random, and biases are 0.
    """
    for path, module in model.named_modules():
        draw_module(path, module, init, std, tied)


def draw_module(path: str, module: nn.Module, init: str, std: float, tied: bool) -> None:
    """Draw the weights of one module of a model, but not those of its children."""
    name = path.rpartition(".")[2]
    if (draw := getattr(module, "draw_weights", None)) is not None:
        draw(init, std)
    elif isinstance(module, nn.Linear):
        draw_matrix(module.weight, name, init, std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        wide = init == "zero_outputs" and not (tied and path == "embed")
        nn.init.normal_(module.weight, std=1.0 if wide else std)


def draw_matrix(weight: Tensor, name: str, init: str, std: float) -> None:
    """Draw matrices (…, outputs, inputs)."""
    if init == "normal":
        nn.init.normal_(weight, std=std)
    elif init == "uniform" and name in ATTENTION:
        nn.init.xavier_uniform_(weight)
    elif init == "uniform":
        bound = 1 / math.sqrt(weight.shape[-1])
        nn.init.uniform_(weight, -bound, bound)
    elif name in OUTPUTS:
        nn.init.zeros_(weight)
    else:
        bound = math.sqrt(3) * 0.5 / math.sqrt(weight.shape[-1])
        nn.init.uniform_(weight, -bound, bound)


# ---------------------------------------------------------------- tensors from elsewhere

# The most layers, and the most layers, shared experts and recipes of experts together. A module
# takes about a millisecond to build.
MOST_LAYERS, MOST_MODULES = 1024, 4096

REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# The number of a layer, in our names and in those of transformers and the seeds.
_LAYER = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.")


def require_possible(config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raise BadInput unless tensors with these names and sizes can be the model's weights.

    The settings of a model from elsewhere can claim any size. A model that its own tensors can't
    fill is refused here, at the cost of reading the tensors' names and shapes.

    Afterwards, the cost of building the model is that of its tensors. Whether each tensor is there
    and has the right kind of numbers and shape is for `Decoder.from_state`.
    """
    layers = {match[1] for name in tensors if (match := _LAYER.search(name))}
    part = config.feedforward_part
    parts = 0 if part is None else part.modules(config)
    elements = sum(tensor.numel() for tensor in tensors.values())
    if config.n_layers > len(layers):
        raise BadInput(
            f"n_layers is {config.n_layers:,}, but the weights have tensors of "
            f"{len(layers):,} layers"
        )
    if config.n_layers > MOST_LAYERS or config.n_layers * (1 + parts) > MOST_MODULES:
        raise BadInput(
            f"n_layers is {config.n_layers:,}, with {parts:,} shared experts or recipes each: "
            f"at most {MOST_LAYERS:,} layers, and {MOST_MODULES:,} layers and such parts, are "
            "read"
        )
    for tensor_name, needed in _least_elements(config):
        if needed > elements:
            raise BadInput(
                f"the settings need {needed:,} numbers for {tensor_name}, but the weights have "
                f"only {elements:,} in total"
            )


def _least_elements(config: ModelConfig) -> Iterator[tuple[str, int]]:
    """Yield the sizes of the largest tensors of the model, by what they are."""
    key_width = config.n_kv_heads * config.head_dim
    yield "vocab_size × d_model", config.vocab_size * config.d_model
    yield "the rows of the head × d_model", config.head_rows * config.d_model
    yield "n_heads × head_dim × d_model", config.n_heads * config.head_dim * config.d_model
    yield "n_kv_heads × head_dim × d_model", key_width * config.d_model
    if config.positions == "learned":
        yield "seq_len × d_model", config.seq_len * config.d_model
    part = config.feedforward_part
    if part is None:
        yield "experts × d_ff × d_model", config.d_ff * config.d_model
    else:
        yield from part.least_elements(config)
    if config.values is not None:
        yield "vocab_size × n_kv_heads × head_dim", config.vocab_size * key_width


def require_fitting(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise BadInput that names the first of the weights that is missing, unexpected or of another
    shape or kind of numbers than the model's. Neither needs values."""
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            raise BadInput(f"the weights have no {name} of shape {tuple(tensor.shape)}")
        real, dtype = tensor.is_floating_point(), weights[name].dtype
        if dtype not in (REAL if real else (tensor.dtype,)):
            kind = "real numbers" if real else tensor.dtype
            raise BadInput(f"{name} is not an array of {kind}, but {dtype}")
        if weights[name].shape != tensor.shape:
            raise BadInput(
                f"{name} has shape {tuple(weights[name].shape)}; "
                f"the model's settings need {tuple(tensor.shape)}"
            )
    if (unknown := next((name for name in weights if name not in expected), None)) is not None:
        raise BadInput(f"unexpected tensor {unknown}: this model has no parameter with that name")


@torch.no_grad()
def round_to_bfloat16(model: nn.Module, names: Iterable[str]) -> None:
    """Round these tensors of the state dict to bfloat16, but keep them in their own dtype."""
    weights = model.state_dict()
    for name in names:
        weights[name].copy_(weights[name].bfloat16())


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise BadInput that names the first tensor with NaN or infinity."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BadInput(f"{name} has numbers that are not finite")


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, 64 hex digits, of tensors with their names, shapes and values.

    Real numbers count as fp32. So a model has the same hash whether a file stores its weights in
    bfloat16 or, with the same values, in fp32.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.float()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
