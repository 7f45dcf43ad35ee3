"""The job file: the model and its tokenizer, and the model that a run starts from.

A changed default or a new field moves digests: see train_sections.py.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from annotated_types import MaxLen, Predicate
from pydantic import create_model, field_validator, model_validator

from pion.config.model_config import APART, PARTS, ModelConfig
from pion.config.part_fields import FACTOR, LAYERS, MEANING, MOST, SEQ_LEN, VOCABULARY, WIDTH
from pion.config.presets import PRESETS
from pion.files import is_sha256
from pipeline.job.section import (
    Section,
    identity,
    made,
    mistakes_of,
    refuse,
)

_Sha256 = Annotated[str, Predicate(is_sha256)]


@dataclass(frozen=True)
class Base:
    """A model that somebody else, or another run, has trained.

    What it is follows from the content of its files, never from a name, a branch or a path.

    Attributes:
        source: what the job calls it.
        hash: sha256 of the names and contents of all files that results depend on.
        tokenizer: the same of the files that decide token ids. Prepared data depends on it.
        config: the settings of its decoder, as `ModelConfig.to_dict`.
        commit: the commit of a Hub repository; None for any other source.
        template: sha256 of its chat template; None if it has none.
        date: the day that its chat template writes as today's, where the template asks for one. It
            is the day on which the run found the model, and stays the same for the run.
        note: what `pion check` says of its files.
    """

    source: str
    hash: _Sha256
    tokenizer: _Sha256
    config: Mapping[str, Any]
    commit: str | None = None
    template: _Sha256 | None = None
    date: Annotated[str, MaxLen(10)] | None = None
    note: str = ""

    @property
    def model_config(self) -> ModelConfig:
        """The settings of its decoder. Raises BadInput if this version does not have them."""
        return ModelConfig.from_dict(dict(self.config))

    def __str__(self) -> str:
        at = f" at commit {self.commit[:12]}" if self.commit else ""
        return f"{self.source}{at} (content {self.hash[:12]})"

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the base, as plain JSON."""
        return dataclasses.asdict(self)


def section_of(part: type) -> Any:
    """Return a section with the fields of a part (pion/config/parts.py) that a job can set.

    A field that is not given has the preset's value, or else the part's default.
    """
    hints = get_type_hints(part)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        if MEANING not in field.metadata:
            continue
        # Some meanings say themselves what the part does without the field.
        what, _, unset = field.metadata[MEANING].partition("; unset: ")
        if not unset and field.default is not dataclasses.MISSING:
            unset = "none" if field.default == () else str(field.default)
        meaning = f"{what}; unset: " + (unset or "the preset's value")
        fields[field.name] = (
            hints[field.name] | None,
            identity(None, meaning, most=field.metadata.get(MOST)),
        )
    doc = (inspect.getdoc(part) or "").partition("\n")[0]
    return create_model(part.__name__, __base__=Section, __doc__=doc, **fields)


# What a job may give next to `from`: the context, and what learns from a trained model.
NEXT_TO_FROM = ("seq_len", "gates", *APART)


class _Shape(Section):
    base: str | None = identity(
        None,
        "a trained model to start from, with its shape, weights, tokenizer and context: a Hub "
        "repository (user/name, or user/name@REVISION), a folder, a run or a seed's .pt file. Only "
        f"seq_len, for another context, gates and {', '.join(APART)} may be given too",
        alias="from",
    )
    preset: str | None = identity(None, f"a named model: {', '.join(PRESETS)}")
    d_model: int | None = identity(None, "width of the residual stream", gt=0, most=WIDTH)
    n_layers: int | None = identity(None, "number of decoder blocks", gt=0, most=LAYERS)
    n_heads: int | None = identity(None, "attention heads (queries)", gt=0, most=WIDTH)
    n_kv_heads: int | None = identity(
        None, "key/value heads; each serves n_heads / n_kv_heads query heads", gt=0, most=WIDTH
    )
    d_ff: int | None = identity(None, "width of the feed-forward layer", gt=0, most=WIDTH)
    head_dim: int | None = identity(
        None, "width of one attention head; unset: d_model / n_heads", gt=0, most=WIDTH
    )
    vocab_size: int | None = identity(
        None,
        "rows of the embedding; unset: the preset's value. Without a preset: the value of "
        "tokenizer.train.vocab_size",
        gt=0,
        most=VOCABULARY,
    )
    seq_len: int | None = identity(
        None,
        "longest context in tokens; unset: the preset's value. Without a preset: the length of "
        "the longest training row",
        gt=0,
        most=SEQ_LEN,
    )
    rope_theta: float | None = identity(
        None,
        "base of the rotary frequencies; unset: the preset's value. Without a preset: 10000",
        gt=0,
        most=10**12,
    )
    softcap: float | None = identity(
        None,
        "limit attention scores to ±softcap; a model with a softcap is published with its code, as "
        "modelling files",
        gt=0,
        most=FACTOR,
    )


if TYPE_CHECKING:
    _ShapeAndParts = _Shape
else:
    _ShapeAndParts = create_model(
        "_ShapeAndParts",
        __base__=_Shape,
        **{
            name: (section_of(kind) | None, identity(None, kind.about))
            for name, kind in PARTS.items()
        },
    )


class Model(_ShapeAndParts):
    """The decoder: a model to start from, a preset, a preset with some fields replaced, or every
    field. `null` takes away what a preset has: a part, softcap or logit_cap."""

    activation: Literal["swiglu", "geglu", "relu2", "gelu"] | None = identity(
        None,
        "activation of feed-forward layers; relu2 and gelu: two matrices, with relu(x)² or GELU "
        "between; unset: swiglu",
    )
    positions: Literal["rotary", "learned"] | None = identity(
        None,
        "learned: a table with a vector for each position, added to the embeddings; unset: rotary",
    )
    gates: bool | None = identity(
        None,
        "give each layer a gate that learns which tokens need no feed-forward layer. Gates are "
        "used only with --skip-above; unset: false",
    )
    norm_gain: bool | None = identity(None, "give norms a learned gain; unset: true")
    norms: Literal["before", "after", "both"] | None = identity(
        None, "norms of what a layer reads, of what it adds, or of both; unset: before"
    )
    norm_eps: float | None = identity(None, "epsilon of all norms; unset: 1e-6", gt=0, most=FACTOR)
    logit_cap: float | None = identity(
        None,
        "limit the head's results z to ±logit_cap, as z / sqrt(1 + (z / logit_cap)²)",
        gt=0,
        most=FACTOR,
    )
    tie_embeddings: bool | None = identity(
        None, "use the embedding as the head too; unset: the preset's value, or else true"
    )
    init: Literal["normal", "zero_outputs", "uniform"] | None = identity(
        None,
        "initial weights. normal: N(0, 0.02²). zero_outputs: the head and the matrices that write "
        "to the residual stream are 0, embeddings N(0, 1). uniform: matrices uniform, embeddings "
        "N(0, 0.02²); unset: normal",
    )

    @field_validator("preset")
    @classmethod
    def _preset_exists(cls, preset: str | None) -> str | None:
        if preset is None:
            return None
        if "/" in preset:
            return refuse(preset, [f"to start from a trained model, write {{from: {preset}}}"])
        return refuse(preset, mistakes_of(ModelConfig.preset, preset))


class TrainTokenizer(Section):
    """A byte-level BPE, trained on the training documents."""

    vocab_size: int = identity(
        8192,
        "tokens in the vocabulary, including 256 bytes and 2 special tokens",
        ge=258,
        most=VOCABULARY,
    )
    max_mb: float = identity(
        64.0,
        "how much text to learn from, in MB; words of more than 1,024 bytes are cut",
        gt=0,
        most=FACTOR,
    )


class TokenizerSection(Section):
    """The tokenizer, from exactly one of `train`, `file` and `hub`."""

    train: TrainTokenizer | None = identity(None, "train a byte-level BPE on data.sources")
    file: str | None = identity(None, "path of a tokenizer.json")
    hub: str | None = identity(None, "Hub repository (user/name) that has a tokenizer.json")
    revision: str | None = identity(
        None, "commit, branch or tag of the `hub` repository; unset: its main branch"
    )
    hub_file: str = identity("tokenizer.json", "path of the tokenizer.json in the `hub` repository")

    @model_validator(mode="after")
    def _exactly_one(self) -> TokenizerSection:
        given = [n for n in ("train", "file", "hub") if getattr(self, n) is not None]
        found = f"these are given: {', '.join(given)}" if given else "none is given"
        mistake = f"give exactly one of train, file, hub; {found}"
        return refuse(self, made({mistake: len(given) != 1}))
