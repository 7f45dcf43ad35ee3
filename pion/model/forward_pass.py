"""One forward pass: what it reads, what all its layers share, and what each layer gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.model.attention.attention import AttentionInputs
from pion.model.attention.cache import KVCache, Place
from pion.model.attention.masks import (
    Kernel,
    Masks,
    attends_by_document,
    build_cache_masks,
    build_mask,
    build_masks,
    flexible,
)
from pion.model.attention.reach import reaches
from pion.model.attention.rope import Rotation, rotations
from pion.model.feedforward.dense import FeedForwardInputs, Stats
from pion.model.norm_and_projection import RMSNorm

State = dict[str, Tensor]

# The number under which `Pass.results` has the embeddings, which come before layer 0.
EMBEDDED = -1


class StepOptions(NamedTuple):
    """How a training step computes its forward passes.

    Attributes:
        parts: parts (pion/config/parts.py) whose sizes in this step differ from the model's, by the
            name of their field: a shorter window, or primitives with shorter recipes.
        recompute: keep only each block's input for the backward pass, and recompute the rest.
        compiled: compute blocks and loss by torch.compile. All blocks of one structure share a
            compilation.
        residual: the dtype of the hidden states between blocks, the residual stream. Norms and sums
            compute in fp32 and round their results once.
    """

    parts: Mapping[str, Any] = MappingProxyType({})
    recompute: bool = False
    compiled: bool = False
    residual: torch.dtype = torch.float32


# What evaluation, generation and export use. They meet many shapes, so they are never compiled.
AS_THE_MODEL = StepOptions()


class Given(NamedTuple):
    """The tokens of a forward pass, where they are, and what came before them; see Decoder.

    With a cache, the tokens follow those of its rows from `row` on, or are at `place`, which was
    made before.
    """

    tokens: Tensor
    positions: Tensor | None = None
    documents: Tensor | None = None
    cache: KVCache | None = None
    row: int = 0
    place: Place | None = None
    branches: Tensor | None = None

    @property
    def real(self) -> Tensor | None:
        """Whether each token is no padding, (B, T); None: there is no padding."""
        return None if self.documents is None else self.documents >= 0


class LayerInput(NamedTuple):
    """What a layer reads besides the result of the layer before.

    The layer's input is kept · (x + gate · skipped) + start · x0. `skip` has gate and skipped,
    `mix` has kept, start and x0. What a layer does not have is None.
    """

    skip: tuple[Tensor, Tensor] | None = None
    mix: tuple[Tensor, Tensor, Tensor] | None = None

    def into(self, x: Tensor) -> Tensor:
        """Return the layer's input, for the result x of the layer before: (B, T, d_model).

        The sums are in fp32, and the input is rounded once to the dtype of x.
        """
        residual = x.dtype
        if self.skip is not None:
            gate, skipped = self.skip
            x = x.float() + gate * skipped.float()
        if self.mix is not None:
            keep, start, x0 = self.mix
            x = keep * x.float() + start * x0.float()
        return x.to(residual)


class BlockInputs(NamedTuple):
    """What a block gets besides the hidden states. If it is `trained`, its gate learns."""

    attention: AttentionInputs
    feedforward: FeedForwardInputs
    before: LayerInput = LayerInput()
    trained: bool = False


@dataclass(frozen=True)
class Pass:
    """What all layers of one forward pass share. Made once, before the first layer.

    Attributes:
        given: the tokens. `positions` are set for rows of a cache of different lengths.
        real: as in `Given`.
        place: where the tokens are in the cache, if there is one.
        masks: what each reach of attention sees.
        rotation: the rotation of each token; None: positions are learned.
        window_rotation: the same, in layers with a window.
        trained: whether a backward pass follows.
        options: how the pass is computed.
        results: the results of the layers that later layers read, by their numbers.
        carried: what shared parts need again at a later layer, by a name.
        scalars: the elements of weights, each a scalar that one layer reads.
    """

    given: Given
    real: Tensor | None
    place: Place | None
    masks: Masks
    rotation: Rotation | None
    window_rotation: Rotation | None
    trained: bool
    options: StepOptions
    results: dict[int, Tensor] = field(default_factory=dict)
    carried: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[Tensor, tuple[Tensor, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Owner, given: Given, options: StepOptions, *, trained: bool) -> Pass:
        """Return the pass of a model over `given`. A cache makes room for its tokens.

        Raises BadInput for more tokens than the context, except in rows of documents with positions
        of their own, which have to be below the context. Raises ValueError for a cache with
        documents and for a full row.
        """
        config, cache = model.config, given.cache
        (batch, count), device = given.tokens.shape, given.tokens.device
        past, place = _past(given), given.place
        # To look at the positions would make us wait for a GPU.
        packed = given.documents is not None and given.positions is not None
        if past + count > config.seq_len and not packed:
            raise BadInput(
                f"{past + count} tokens are more than the model's context of {config.seq_len}"
            )
        if cache is not None:
            if given.documents is not None:
                raise ValueError("a cache has one document per row, so documents can't be given")
            place = place or cache.place(given.row, batch, count, device)
            if place.positions is not None:
                given = given._replace(positions=place.positions)
        of_parts = (part.masks(config, given, place) for part in model.shared_parts())
        if (part_masks := next(filter(None, of_parts), None)) is not None:
            masks, positions = part_masks
            given = given._replace(positions=positions)
        elif cache is None or place is None:
            masks = _masks(config, given, options)
        else:
            masks = build_cache_masks(config, given.tokens, place, cache)
        rotate = partial(rotations, config, past, count, given.positions, device)
        turned = rotate()
        apart = config.windows is not None and config.windows.rope_theta is not None
        of_windows = rotate(windowed=True) if apart else turned
        return cls(given, given.real, place, masks, turned, of_windows, trained, options)

    def elements(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the elements of a weight, in the order of its rows.

        Their gradients become that of the weight at once. `weight[layer]` would make and add a
        tensor of the weight's size for each element.
        """
        if weight not in self.scalars:
            self.scalars[weight] = weight.flatten().unbind()
        return self.scalars[weight]

    @property
    def past(self) -> int:
        """The number of cached tokens; of several texts, that of the longest."""
        return 0 if self.place is None else max(self.place.starts)


def _past(given: Given) -> int:
    """Return the number of tokens before those of a pass; of several texts, that of the longest."""
    if given.place is not None:
        return max(given.place.starts)
    if given.cache is None:
        return 0
    return max(given.cache.lengths[given.row : given.row + len(given.tokens)], default=0)


def _masks(config: ModelConfig, given: Given, options: StepOptions) -> Masks:
    """Return what each reach of attention sees in whole rows."""
    device, total = given.tokens.device.type, given.tokens.shape[1]
    windows = options.parts.get("windows", config.windows)
    if windows is not None and not windows.hides_in(total):
        masks = _masks(_without_windows(config), given, StepOptions(compiled=options.compiled))
        return dict.fromkeys(reaches(config), masks["full"])
    # With a cache, flex attention is not used: it is compiled for each length of a prompt.
    kernel: Kernel = "flex" if flexible(config, device) else "dense"
    # In a model that hides tokens, a document has one answer. So branches hide nothing there.
    if given.branches is not None and not config.hides:
        return {
            "full": build_mask(
                config,
                given.tokens,
                total,
                given.documents,
                given.branches,
                flex=kernel == "flex",
            )
        }
    if attends_by_document(config, device, total, compiled=options.compiled):
        kernel = "documents"
    window = None if windows is None else windows.tokens
    return build_masks(config, given.tokens, total, given.documents, window, kernel=kernel)


@lru_cache(maxsize=16)
def _without_windows(config: ModelConfig) -> ModelConfig:
    return replace(config, windows=None)


class Owner(Protocol):
    """What parts read of their model: a Decoder."""

    config: ModelConfig
    embed: nn.Embedding
    blocks: nn.ModuleList
    norm: RMSNorm

    def head(self) -> Tensor:
        """Return the matrix of the head, a row for each id."""

    def shared_parts(self) -> list[SharedPart]:
        """Return the parts of the model."""


class Passed(NamedTuple):
    """What a forward pass leaves for the losses of parts.

    `hidden` (B, T, d_model) is the head's input, and `targets` (B, T) are the next tokens.
    `cross_entropy` is that of pion/model/loss.py, as the step computes it.
    """

    given: Given
    targets: Tensor
    hidden: Tensor
    options: StepOptions
    cross_entropy: Callable[..., Tensor]


class SharedPart(nn.Module):
    """A part of a decoder outside its blocks: what it does in a forward pass.

    Decoder has a list of the parts, and asks each the same. By default, a part does nothing.
    `reads` has the layers whose results `give` needs later. A `last` part stands behind the head.
    `layer` makes a feed-forward layer, if the part has the weights of these layers. `rules` has the
    optimizers of parameters of a role, if AdamW and Muon do not fit them; see `PrimitiveWise`.
    """

    last: ClassVar[bool] = False
    layer: ClassVar[Any] = None  # (ModelConfig) -> FeedForward
    rules: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    reads: frozenset[int] = frozenset()

    @staticmethod
    def pack(config: ModelConfig, state: State) -> tuple[ModelConfig, State]:
        """Return a model as it is published."""
        return config, state

    def masks(
        self, config: ModelConfig, given: Given, place: Place | None
    ) -> tuple[Masks, Tensor] | None:
        """Return the masks and the positions of a pass whose part has entries behind the tokens.

        `place` is where the tokens are in a cache. None: the part has no entries.
        """

    def embedded(self, x: Tensor, now: Pass) -> Tensor:
        """Return the embeddings x (B, T, d_model) in fp32, with what the part adds to them."""
        return x

    def give(self, inputs: BlockInputs, block: nn.Module, layer: int, now: Pass) -> BlockInputs:
        """Return what a layer and its block get, with what they get of this part."""
        return inputs

    def losses(self, model: Owner, passed: Passed) -> tuple[list[Tensor], Stats]:
        """Return the losses of a pass, each summed over rows, and a report without gradient."""
        return [], {}

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates for one token in training, but not in blocks."""
        return 0

    def read_rows(self, rows: Callable[[], Tensor]) -> None:
        """Set what the first rows of training, tokens (rows, T), decide of new weights."""

    def check_weights(self, blocks: nn.ModuleList, state: Mapping[str, Tensor]) -> None:
        """Raise BadInput for weights from a file, by their names, that do not fit each other."""

    def check_skipping(self) -> None:
        """Raise BadInput if a token that skips a layer would change other tokens."""

    def join_projections(self, blocks: nn.ModuleList, dtype: torch.dtype) -> None:
        """Compute once, for all tokens to come, what layers make of these weights; see Decoder."""

    def group_of(self, parameter: str) -> int | None:
        """Return the number of the group of layers that a parameter of the model belongs to."""

    def exported(self, rows: int) -> tuple[dict[str, Any], State]:
        """Return settings and tensors for the folder of a part apart, next to `rows` token ids."""
        return {}, self.state_dict()

    def multiplied_out(
        self, config: ModelConfig, state: State, blocks: nn.ModuleList
    ) -> tuple[ModelConfig, State]:
        """Return the model with dense feed-forward layers that compute the same."""
        return config, state


def group_of_parameter(model: nn.Module, name: str) -> int | None:
    """Return the number of the group of layers that a parameter belongs to; None: no group."""
    parts = (part for part in model.children() if isinstance(part, SharedPart))
    return next((group for part in parts if (group := part.group_of(name)) is not None), None)
