"""The job file: every field of a run, its default and its meaning.

How a field is declared, and what it means for finished stages: section.py. The kinds of data
sources: sources.py.
Paths of inputs are relative to the job file, paths of outputs to the working directory.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import PrivateAttr, ValidationInfo, field_validator, model_validator

from pion.config import OPTIONAL, ModelConfig
from pion.errors import BadInput
from pion.parts import Experts, Heads, Values, Windows, Wiring
from pion.presets import PRESETS
from pion.primitives import Primitives
from pion.rope_scaling import RopeScaling
from pion.train.phases import check_phases, check_phases_of_model
from pipeline.job.base import Base
from pipeline.job.model_parts import section_of
from pipeline.job.phases import Phase, phases_of
from pipeline.job.section import Section, identity, refuse, runtime, scheduled
from pipeline.job.sources import ConversationSource, DataSource, Source

STAGES = ("prepare", "pretrain", "sft", "evaluate", "publish")
# Defaults of `sft` where the run starts from a trained model.
EPOCHS_FROM_BASE, BATCH_FROM_BASE = 3.0, 16


# ---------------------------------------------------------------- model and tokenizer


class Model(Section):
    """The decoder: a model to start from, a preset, a preset with some fields replaced, or every
    field. `null` takes away what a preset has: a part, softcap or logit_cap."""

    base: str | None = identity(
        None,
        "a trained model to start from, with its shape, weights, tokenizer and context: a Hub "
        "repository (user/name, or user/name@REVISION), a folder, a run or a seed's .pt file. Only "
        "seq_len may be given too, to shorten the context",
        alias="from",
    )
    preset: str | None = identity(None, f"a named model: {', '.join(PRESETS)}")
    d_model: int | None = identity(None, "width of the residual stream", gt=0)
    n_layers: int | None = identity(None, "number of decoder blocks", gt=0)
    n_heads: int | None = identity(None, "attention heads (queries)", gt=0)
    n_kv_heads: int | None = identity(
        None, "key/value heads; each serves n_heads / n_kv_heads query heads", gt=0
    )
    d_ff: int | None = identity(None, "width of the feed-forward layer", gt=0)
    head_dim: int | None = identity(
        None, "width of one attention head; unset: d_model / n_heads", gt=0
    )
    vocab_size: int | None = identity(
        None,
        "rows of the embedding; unset: the preset's value, or without a preset "
        "tokenizer.train.vocab_size",
        gt=0,
    )
    seq_len: int | None = identity(
        None,
        "longest context in tokens; unset: the preset's value, or without a preset the length of "
        "the longest training row",
        gt=0,
    )
    rope_theta: float | None = identity(
        None,
        "base of the rotary frequencies; unset: the preset's value, or without a preset 10000",
        gt=0,
    )
    softcap: float | None = identity(
        None,
        "limit attention scores to ±softcap; a model with a softcap is published with its code, as "
        "modelling files",
        gt=0,
    )

    experts: section_of(Experts) | None = identity(  # type: ignore[valid-type]
        None, "a mixture of experts in place of each feed-forward layer; d_ff is one expert's width"
    )
    windows: section_of(Windows) | None = identity(  # type: ignore[valid-type]
        None, "attention that sees only recent tokens"
    )
    heads: section_of(Heads) | None = identity(  # type: ignore[valid-type]
        None, "attention heads with another scale, other norms, biases or fewer rotary frequencies"
    )
    wiring: section_of(Wiring) | None = identity(  # type: ignore[valid-type]
        None, "which layers have attention, and what layers read besides the layer before"
    )
    values: section_of(Values) | None = identity(  # type: ignore[valid-type]
        None, "tables with a vector for each token id, which joins attention's values"
    )
    primitives: section_of(Primitives) | None = identity(  # type: ignore[valid-type]
        None, "feed-forward layers whose matrices are mixed from shared low-rank primitives"
    )
    rope_scaling: section_of(RopeScaling) | None = identity(  # type: ignore[valid-type]
        None, "rotary positions for a longer context than the original one, as in Llama 3.1"
    )
    activation: Literal["swiglu", "relu2", "gelu"] | None = identity(
        None,
        "of feed-forward layers; relu2 and gelu: two matrices, with relu(x)² or GELU between; "
        "unset: swiglu",
    )
    positions: Literal["rotary", "learned"] | None = identity(
        None,
        "learned: a table with a vector for each position, added to the embeddings; unset: rotary",
    )
    gates: bool | None = identity(
        None,
        "give each layer a gate that learns which tokens need no feed-forward layer; they are used "
        "only with --skip-above; unset: false",
    )
    norm_gain: bool | None = identity(None, "give norms a learned gain; unset: true")
    norm_eps: float | None = identity(None, "epsilon of all norms; unset: 1e-6", gt=0)
    logit_cap: float | None = identity(
        None, "limit the head's results z to ±logit_cap, as z / sqrt(1 + (z / logit_cap)²)", gt=0
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
        if preset is not None:
            try:
                ModelConfig.preset(preset)
            except BadInput as error:
                raise ValueError(str(error)) from None
        return preset


class TrainTokenizer(Section):
    """A byte-level BPE, trained on the training documents."""

    vocab_size: int = identity(
        8192, "tokens in the vocabulary, including 256 bytes and 2 special tokens", ge=258
    )
    max_mb: float = identity(64.0, "how much text to learn from, in MB", gt=0)


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
        if len(given) != 1:
            raise ValueError(
                "give exactly one of train, file, hub; "
                + (f"these are given: {', '.join(given)}" if given else "none is given")
            )
        return self


# ---------------------------------------------------------------- data


class Data(Section):
    seq_len: int = identity(2048, "tokens in a training row", ge=8)
    sources: list[DataSource] = identity([], "where the pretraining text comes from")
    held_out: float = identity(
        0.02,
        "share of the documents (for python-docs: of the files) reserved for evaluation. From a "
        "tokenized source (npy, bin, hub-npy), Pion always reserves the last 1 % of the rows",
        gt=0,
        lt=0.5,
    )
    shard_rows: int = identity(10_000, "rows in one file of prepared data (a shard)", gt=0)
    window: int = identity(8, "number of shards whose rows are shuffled together", gt=0)
    max_line_mb: float = runtime(
        16.0,
        "longest line of a text, JSON Lines or conversation file, and longest row of a table, in "
        "MB. A longer line is refused before it fills the memory",
        gt=0,
    )
    documents: bool | None = identity(
        None,
        "let tokens of text attend only within their own document, in pretraining and in "
        "evaluation. An end-of-text begins a new document. Conversations never see each other; "
        "unset: true if the model has windows, else false",
        before=False,
    )


# ---------------------------------------------------------------- training stages


_WARMUP = (
    "steps of linear warm-up; unset: the default, or a tenth of the steps where these are fewer"
)


class Train(Section):
    """The fields that both training stages have."""

    steps: int | None = scheduled(..., "optimizer steps", gt=0)
    global_batch: int = identity(
        64, "sequences in one optimizer step, for any number of GPUs", gt=0
    )
    lr: float = scheduled(3e-4, "peak learning rate of AdamW", gt=0)
    min_lr: float = scheduled(3e-5, "learning rate at the end of the schedule", ge=0)
    warmup_steps: int = scheduled(1000, _WARMUP, ge=0)
    schedule: Literal["wsd", "cosine", "constant"] = scheduled(
        "wsd", "after the warm-up: wsd (stable, then decay), cosine, or constant"
    )
    decay_shape: Literal["cosine", "linear"] = scheduled("cosine", "shape of the decay (wsd only)")
    decay_fraction: float = scheduled(
        0.2,
        "share of the steps that the decay at the end takes (wsd only)",
        gt=0,
        le=1,
    )
    optimizer: Literal["adamw", "muon"] = scheduled(
        "adamw",
        "adamw: AdamW for everything; muon: Muon for the blocks' matrices, AdamW for the rest",
    )
    muon_lr: float = scheduled(0.02, "peak learning rate of Muon", gt=0)
    muon_momentum: float = scheduled(0.95, "momentum of Muon", ge=0, lt=1)
    muon_momentum_start: float | None = scheduled(
        None,
        "momentum of Muon at the start, which rises to muon_momentum at the end; unset: constant",
        before=None,
        ge=0,
        lt=1,
    )
    muon_decays: bool = scheduled(
        True, "let muon_lr follow the schedule; false: it is constant", before=True
    )
    embedding_lr: float | None = scheduled(
        None, "peak learning rate of embeddings and value tables; unset: lr", before=None, gt=0
    )
    head_lr: float | None = scheduled(
        None, "peak learning rate of an untied head; unset: lr", before=None, gt=0
    )
    vector_lr: float | None = scheduled(
        None, "peak learning rate of gains and scalars; unset: lr", before=None, gt=0
    )
    window_schedule: Literal["constant", "cubic"] = scheduled(
        "constant",
        "cubic: a model's windows grow from one block to their full size over the run",
        before="constant",
    )
    weight_decay: float = scheduled(0.1, "decoupled weight decay of matrices and embeddings", ge=0)
    primitive_weight_decay: float = scheduled(
        0.0, "decoupled weight decay of primitives, while a recipe uses them", before=0.0, ge=0
    )
    phases: list[Phase] = scheduled(
        [], "phases with their own rates, recipe sizes and trained bands, in order", before=[]
    )
    beta1: float = scheduled(0.9, "decay rate of AdamW's first moment", ge=0, lt=1)
    beta2: float = scheduled(0.95, "decay rate of AdamW's second moment", ge=0, lt=1)
    eps: float = scheduled(1e-8, "AdamW's epsilon", gt=0)
    clip: float = scheduled(1.0, "limit of the gradient's norm; 0: no limit", ge=0)
    max_spike: float | None = runtime(
        None,
        "roll back a step whose loss exceeds this multiple of the recent median; unset: no limit",
        gt=1,
    )
    init_from: str | None = identity(
        None,
        "start from a run, checkpoint, exported folder, Hub repository or .pt file; unset: "
        "pretrain starts from random weights, and sft from the pretrained model",
    )

    _warmup_given: bool = PrivateAttr(default=True)
    _rows: int | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _schedule_fits(self) -> Train:
        self._warmup_given = "warmup_steps" in self.model_fields_set
        mistakes = [] if self.steps is None else self._fit_steps(self.steps)
        if self.min_lr > self.lr:
            mistakes.append(f"min_lr: {self.min_lr} is above lr {self.lr}")
        start = self.muon_momentum_start
        if start is not None and start > self.muon_momentum:
            mistakes.append(
                f"muon_momentum_start: {start} is above muon_momentum {self.muon_momentum}"
            )
        return refuse(self, mistakes)

    def _fit_steps(self, steps: int) -> list[str]:
        """Shorten the default warm-up if need be; return what does not fit into `steps`."""
        if not self._warmup_given and self.warmup_steps >= steps:
            self.warmup_steps = steps // 10
        mistakes = []
        if self.warmup_steps >= steps:
            mistakes.append(f"warmup_steps: {self.warmup_steps} must be below steps {steps}")
        try:
            check_phases(phases_of(self.phases), steps)
        except BadInput as error:
            mistakes.append(str(error))
        return mistakes

    def know_rows(self, rows: int) -> None:
        """Learn how many rows the stage's data has, from which its steps may follow.

        Raises BadInput if the schedule does not fit into the steps.
        """
        self._rows = rows
        steps, warmup = self.total_steps, self.total_warmup_steps
        if warmup >= steps:
            raise BadInput(
                f"warmup_steps: {warmup} must be below the {steps} steps that the data gives "
                f"({rows:,} rows). Nothing was lost. Lower warmup_steps, or give more data "
                "or epochs"
            )

    @property
    def total_steps(self) -> int:
        """The optimizer steps: as given, or for the passes over the rows that `know_rows` gave."""
        if self.steps is not None:
            return self.steps
        assert self._rows is not None, "the rows of the data are not known yet"
        return max(1, math.ceil(self.passes * self._rows / self.global_batch))

    @property
    def steps_are_known(self) -> bool:
        """Whether `total_steps` can be asked for."""
        return self.steps is not None or self._rows is not None

    @property
    def passes(self) -> float:
        """The passes over the data, where the job gives them in place of steps."""
        raise AssertionError("a stage without steps has epochs")

    @property
    def total_warmup_steps(self) -> int:
        """The steps of the warm-up, at most a tenth of all steps unless the job names them."""
        if self._warmup_given or self.warmup_steps < self.total_steps:
            return self.warmup_steps
        return self.total_steps // 10

    @property
    def warmup_given(self) -> bool:
        """Whether the job names the steps of its warm-up."""
        return self._warmup_given


class Pretrain(Train):
    steps: int = scheduled(..., "optimizer steps", gt=0)


class Sft(Train):
    steps: int | None = scheduled(None, "optimizer steps; unset: epochs decides", gt=0)
    epochs: float | None = scheduled(
        None,
        "passes over the conversations, in place of steps; with model.from and without steps: 3",
        before=None,
        gt=0,
    )
    lr: float = scheduled(2e-5, "peak learning rate of AdamW", gt=0)
    min_lr: float = scheduled(2e-6, "learning rate at the end of the schedule", ge=0)
    warmup_steps: int = scheduled(100, _WARMUP, ge=0)
    schedule: Literal["wsd", "cosine", "constant"] = scheduled(
        "cosine", "after the warm-up: wsd (stable, then decay), cosine, or constant"
    )
    weight_decay: float = scheduled(0.01, "decoupled weight decay of matrices and embeddings", ge=0)
    sources: list[ConversationSource] = identity(..., "where the conversations come from")
    held_out: float = identity(
        0.01, "share of the conversations reserved for evaluation", gt=0, lt=0.5
    )
    seq_len: int | None = identity(None, "tokens in a packed row; unset: data.seq_len", ge=8)

    @property
    def passes(self) -> float:
        """The passes over the conversations, where the job gives them in place of steps."""
        assert self.epochs is not None
        return self.epochs

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Sft:
        if self.steps is not None and self.epochs is not None:
            return refuse(self, ["epochs: steps is given too; remove one of the two"])
        if self.epochs is not None and self.phases:
            return refuse(self, ["epochs: phases need steps; give steps in place of epochs"])
        return self


# ---------------------------------------------------------------- evaluate and publish


class LmEval(Section):
    """Tasks of lm-evaluation-harness, run on the exported model."""

    tasks: list[str] = identity(
        [], "names of the tasks; a task whose data cannot be loaded is reported as skipped"
    )
    include_path: str | None = identity(None, "folder with your own task definitions")
    limit: int | None = identity(None, "maximum number of documents per task; unset: all", gt=0)


class Evaluate(Section):
    every: int | None = runtime(
        None, "steps between two evaluations during training; unset: a tenth of the stage", gt=0
    )
    rows: int = runtime(64, "held-out rows in each evaluation during training", gt=0)
    prompts: list[str] = runtime(
        ["The meaning of life is"], "texts that the model continues at each evaluation"
    )
    final_rows: int = identity(1024, "held-out rows in the final evaluation", gt=0)
    ngram_order: int = identity(4, "order of the n-gram model to compare with; 0: none", ge=0, le=6)
    ngram_tokens: int = identity(2_000_000, "training tokens that the n-gram model counts", gt=0)
    continuations: int = identity(
        200,
        "number of multiple-choice questions made from held-out text, in which the model chooses "
        "the real continuation",
        ge=0,
    )
    packs: list[str] = identity(
        [], "JSONL files of multiple-choice questions {context, choices, answer}"
    )
    lm_eval: LmEval = identity(LmEval(), "tasks of lm-evaluation-harness")


REQUIREMENT = re.compile(r"^\s*([a-z_]\w*(?:\.\w+)*)\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*$")


class Publish(Section):
    to: str = identity(..., "a folder, or hf://user/name")
    private: bool = identity(True, "make the Hub repository private")
    license: str | None = identity(
        None, "license named on the model card, such as apache-2.0 or mit"
    )
    description: str | None = identity(None, "a sentence for the model card")
    embeddings: Literal["float32", "bfloat16"] = identity(
        "float32",
        "of all published rows of token ids, the head's too; bfloat16: half the size, rounded "
        "after evaluation",
        before="float32",
    )
    cost: bool = runtime(False, "write the run's time and cost on the model card")
    require: list[str] = identity(
        [],
        "publish only if all these conditions hold, such as bits_per_byte < 2.2 or "
        "pretrain.bits_per_byte < 2.2; without a stage, the published model's result counts",
    )

    @field_validator("require")
    @classmethod
    def _readable(cls, require: list[str]) -> list[str]:
        for text in require:
            if not REQUIREMENT.match(text):
                raise ValueError(f"{text!r} is not `result < number` (or <=, >, >=)")
        return require


# ---------------------------------------------------------------- runtime


class Keep(Section):
    last: int = runtime(2, "number of newest checkpoints to keep", ge=2)
    every: int | None = runtime(
        None, "also keep each checkpoint whose step is a multiple of this number", gt=0
    )
    best: bool = runtime(False, "also keep the checkpoint with the lowest held-out loss")


class Checkpoint(Section):
    every_steps: int | None = runtime(None, "steps between two checkpoints; unset: by time", gt=0)
    every_seconds: float | None = runtime(
        None,
        "seconds between two checkpoints; unset: computed from preemption_hours and the time that "
        "a save takes",
        gt=0,
    )
    preemption_hours: float = runtime(2.0, "expected hours between two preemptions", gt=0)
    keep: Keep = runtime(Keep(), "which checkpoints are kept")
    grace: float = runtime(4.0, "seconds to save the last step after SIGTERM", gt=0)
    max_undurable: float = runtime(
        1800.0, "pause training when the store has been down for this many seconds", gt=0
    )
    linger: float | None = runtime(
        None,
        "seconds to retry when the store is down at the end of a stage; unset: 1800 on a rented "
        "machine, else 0",
        ge=0,
    )
    max_rewinds: int = runtime(3, "maximum number of rollbacks in a row", ge=0)


class Hardware(Section):
    workers: int | None = runtime(
        None,
        "number of Ray Train workers; unset: one per GPU, or 1 without a GPU; 0: train in this "
        "process, without Ray",
        ge=0,
    )
    micro_batch: int | None = runtime(
        None,
        "sequences that a worker computes at once; unset: as many as fit into its memory",
        gt=0,
    )
    dtype: Literal["auto", "bfloat16", "float32"] = runtime(
        "auto", "precision of the computation; auto: bfloat16 on hardware that computes it fast"
    )
    threads: int | None = runtime(
        None, "CPU threads of a worker; unset: the cores divided by the workers", gt=0
    )
    recompute: bool | None = runtime(
        None,
        "recompute activations to save memory; unset: only if a single sequence would otherwise "
        "not fit into memory",
    )
    compile: Literal["auto", True, False] = runtime(
        "auto", "compile the training step with torch.compile; auto: on a GPU"
    )
    hang_seconds: float | None = runtime(
        None,
        "seconds without a step that count as a hang; unset: 20 times the usual time of a step, "
        "and at least 120",
        gt=0,
    )
    deterministic: bool = runtime(False, "give bit-identical results on CUDA too, but more slowly")
    shard_cache_gb: float = runtime(
        20.0, "disk space for shards streamed from the Hub, in GB", gt=0
    )


class Budget(Section):
    hours: float | None = runtime(
        None, "total machine hours of all attempts; unset: no limit", gt=0
    )
    dollars: float | None = runtime(None, "total dollars of all attempts; unset: no limit", gt=0)
    dollars_per_hour: float | None = runtime(
        None,
        "price, in dollars per hour, of a machine that `pion launch` did not rent; used for "
        "budget.dollars",
        ge=0,
    )


@dataclass(frozen=True)
class Price:
    """What a GPU costs to rent, in dollars per hour; None if it is not offered that way."""

    spot: float | None = None
    on_demand: float | None = None


class Log(Section):
    every: int = runtime(10, "steps between two lines of metrics", gt=0)
    tensorboard: str | None = runtime(
        None,
        "folder for TensorBoard's event files; needs `uv sync --extra tensorboard`; unset: no "
        "event files",
    )
    wandb: str | None = runtime(
        None,
        "project in Weights & Biases; needs `uv sync --extra wandb`; unset: Weights & Biases is "
        "not used",
    )


def _price(gpu: str, value: Any) -> Price:
    """Return a GPU's price. A job gives one amount for both ways of renting, or one for each."""
    if isinstance(value, Price):
        return value
    given = value if isinstance(value, dict) else {"spot": value, "on_demand": value}
    for way, dollars in given.items():
        if way not in ("spot", "on_demand"):
            raise ValueError(f"{gpu}: unknown key {way!r}; the keys are spot, on_demand")
        number = isinstance(dollars, int | float) and not isinstance(dollars, bool)
        if dollars is not None and not (number and 0 <= dollars < float("inf")):
            raise ValueError(
                f"{gpu}: {dollars!r} is not an amount in dollars per hour, such as 0.44, or "
                "{spot: 0.2, on_demand: 0.44}"
            )
    return Price(**given)


class Job(Section):
    """One run: which model to train, on which data, how, and where to keep its state."""

    name: str = runtime(
        ...,
        "name of the run in its store",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+=@-]*$",
        max_length=100,
    )
    seed: int = identity(42, "seed of the initial weights and of the row order")
    store: str = runtime(
        "runs", "where state is kept: a folder, file://, s3://bucket/prefix or hf://user/repo"
    )
    model: Model = identity(
        ...,
        "the decoder. Name a model to start from, name a preset, name a preset and replace some of "
        "its fields, or set every field yourself",
    )
    tokenizer: TokenizerSection | None = identity(
        None,
        "the tokenizer. Set exactly one of `train`, `file` and `hub`; required, except with "
        "model.from, which brings its own",
    )
    data: Data = identity(Data(), "the pretraining text")
    pretrain: Pretrain | None = identity(None, "the pretraining stage")
    sft: Sft | None = identity(None, "the fine-tuning stage")
    evaluate: Evaluate = identity(Evaluate(), "evaluation during training and at the end")
    publish: Publish | None = identity(None, "where the finished model goes")
    checkpoint: Checkpoint = runtime(
        Checkpoint(), "how often state is saved, and which checkpoints are kept"
    )
    hardware: Hardware = runtime(Hardware(), "workers, precision, memory")
    budget: Budget = runtime(
        Budget(),
        "limits on time and money. When the run reaches a limit, it saves and stops with exit "
        "code 4",
    )
    prices: dict[str, Price] | None = runtime(
        None,
        "dollars per hour of one rented GPU: {A40: 0.4, L40S: {spot: 0.5, on_demand: 0.9}}; "
        "unset: the prices of SkyPilot's catalog",
    )
    log: Log = runtime(Log(), "where metrics go, and how often")

    _folder: Path = PrivateAttr(default=Path("."))
    _base: Base | None = PrivateAttr(default=None)

    @field_validator("model", mode="before")
    @classmethod
    def _preset_name(cls, model: Any) -> Any:
        return {"preset": model} if isinstance(model, str) else model

    @field_validator("prices", mode="before")
    @classmethod
    def _dollars(cls, prices: Any) -> Any:
        if not isinstance(prices, dict):
            return prices
        return {str(gpu): _price(str(gpu), value) for gpu, value in prices.items()}

    @model_validator(mode="after")
    def _whole(self, info: ValidationInfo) -> Job:
        self._base = (info.context or {}).get("base")
        mistakes = self._mistakes_of_start() + self._missing()
        try:
            config = self.model_config_resolved()
        except BadInput as error:
            return refuse(self, [*mistakes, f"model: {error}"])
        if self._base is not None:
            self._use_defaults_of_base(config)
        for where, seq_len in (("data", self.data.seq_len), ("sft", self.sft_seq_len)):
            if seq_len > config.seq_len and (where == "data" or self.sft):
                mistakes.append(
                    f"{where}.seq_len: {seq_len} exceeds the model's context {config.seq_len}"
                )
        mistakes += [
            f"{stage}.window_schedule: the model has no windows"
            for stage in self.train_stages
            if self.section(stage).window_schedule != "constant" and config.windows is None
        ]
        for stage in self.train_stages:
            try:
                check_phases_of_model(phases_of(self.section(stage).phases), config)
            except BadInput as error:
                mistakes.append(f"{stage}.{error}")
        return refuse(self, mistakes)

    def _use_defaults_of_base(self, config: ModelConfig) -> None:
        """Choose what the job leaves open where it starts from a trained model."""
        if "seq_len" not in self.data.model_fields_set:
            shorter = min(self.data.seq_len, config.seq_len)
            self.data = self.data.model_copy(update={"seq_len": shorter})
        if self.sft is not None:
            chosen: dict[str, Any] = {}
            if self.sft.steps is None and self.sft.epochs is None:
                chosen["epochs"] = EPOCHS_FROM_BASE
            if "global_batch" not in self.sft.model_fields_set:
                chosen["global_batch"] = BATCH_FROM_BASE
            self.sft = self.sft.model_copy(update=chosen)

    def _mistakes_of_start(self) -> list[str]:
        """Return what is wrong with what the run starts from."""
        if self.model.base is None:
            missing = f"missing: {type(self).model_fields['tokenizer'].description}"
            return [] if self.tokenizer else [f"tokenizer: {missing}"]
        mistakes = [
            f"model.{name}: the model that the run starts from decides this. Next to `from`, only "
            "seq_len can be given"
            for name in sorted(self.model.model_fields_set - {"base", "seq_len"})
        ]
        if self.tokenizer is not None:
            mistakes.append("tokenizer: model.from brings its own tokenizer; remove this section")
        first = next(iter(self.train_stages), None)
        if first is not None and self.section(first).init_from is not None:
            mistakes.append(
                f"{first}.init_from: the run starts from model.from; remove one of both"
            )
        if self._base is None:
            mistakes.append("model.from: the model was not looked up, so its shape is not known")
        return mistakes

    def _missing(self) -> list[str]:
        """Return what the job lacks."""
        mistakes = []
        if self.pretrain is None and self.sft is None:
            mistakes.append("nothing to train: give `pretrain`, `sft` or both")
        start = self.model.base or (self.sft is not None and self.sft.init_from)
        if self.pretrain is None and self.sft is not None and not start:
            mistakes.append("sft.init_from: without `pretrain` it must name a model to start from")
        sft, base = self.sft, self.model.base
        if sft is not None and base is None and sft.steps is None and sft.epochs is None:
            mistakes.append("sft.steps: missing: give steps, or epochs in their place")
        if self.pretrain is not None and not self.data.sources:
            mistakes.append("data.sources: empty, but `pretrain` needs text")
        elif self.tokenizer is not None and self.tokenizer.train and not self.data.sources:
            mistakes.append("data.sources: empty, but tokenizer.train learns from it")
        return mistakes

    @property
    def base(self) -> Base | None:
        """The model that the run starts from; None if it starts from random weights."""
        return self._base

    @property
    def folder(self) -> Path:
        """The folder of the job file. Input paths are relative to it."""
        return self._folder

    def input_path(self, path: str) -> Path:
        """Return the absolute form of an input path of this job.

        Raises BadInput for a path that no file can have, and for links that lead to themselves.
        """
        try:
            return (self._folder / Path(path).expanduser()).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise BadInput(f"{path!r:.200} is no path of a file ({error})") from None

    @property
    def sft_seq_len(self) -> int:
        return self.sft.seq_len if self.sft and self.sft.seq_len else self.data.seq_len

    @property
    def train_stages(self) -> list[str]:
        """The training stages this job has, in order."""
        return [s for s in ("pretrain", "sft") if getattr(self, s) is not None]

    @property
    def stages(self) -> list[str]:
        """All stages this job has, in order."""
        return ["prepare", *self.train_stages, "evaluate", *(["publish"] if self.publish else [])]

    def sources(self) -> list[tuple[str, Source]]:
        """Return each data source of the job with its key, such as `data.sources.0`."""
        found: list[tuple[str, Source]] = []
        found += [(f"data.sources.{n}", source) for n, source in enumerate(self.data.sources)]
        if self.sft is not None:
            found += [(f"sft.sources.{n}", source) for n, source in enumerate(self.sft.sources)]
        return found

    def section(self, stage: str) -> Train:
        """Return the section of a training stage."""
        section = getattr(self, stage)
        assert isinstance(section, Train)
        return section

    def seq_len(self, stage: str) -> int:
        """Return the tokens in a row of a training stage."""
        return self.sft_seq_len if stage == "sft" else self.data.seq_len

    @property
    def within_documents(self) -> bool:
        """Whether tokens of pretraining text attend only within their own document."""
        if self.data.documents is not None:
            return self.data.documents
        return self.model_config_resolved().windows is not None

    def model_config_resolved(self) -> ModelConfig:
        """Return the decoder's settings: preset, then fields, then what data and tokenizer imply.

        `null` takes away what a preset has, where a model can be without it. Raises BadInput for an
        unknown preset or a shape that does not fit together.
        """
        if self.model.base is not None:
            return self._config_of_base()
        given = self.model.model_dump(exclude={"preset"}, exclude_unset=True)
        fields = {
            name: value for name, value in given.items() if value is not None or name in OPTIONAL
        }
        if self.model.preset is not None:
            return ModelConfig.preset(self.model.preset, **fields)
        if self.tokenizer is not None and self.tokenizer.train is not None:
            fields.setdefault("vocab_size", self.tokenizer.train.vocab_size)
        fields.setdefault("seq_len", max(self.data.seq_len, self.sft_seq_len))
        needed = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size")
        missing = [name for name in needed if name not in fields]
        if missing:
            raise BadInput(f"give a preset, or these fields too: {', '.join(missing)}")
        return ModelConfig.of(fields)

    def _config_of_base(self) -> ModelConfig:
        """Return the settings of the model to start from, with the job's context."""
        if self._base is None:
            raise BadInput("its shape is not known")
        config = self._base.model_config
        seq_len = self.model.seq_len or config.seq_len
        if seq_len > config.seq_len:
            raise BadInput(
                f"seq_len {seq_len:,} exceeds the {config.seq_len:,} tokens of context that "
                f"{self._base.source} has; it can only be shortened"
            )
        return replace(config, seq_len=seq_len)
