"""The job file: every field of a run, its default and its meaning.

How a field is declared, and what it means for finished stages: section.py. The kinds of data
sources: sources.py.
Paths of inputs are relative to the job file, paths of outputs to the working directory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import PrivateAttr, field_validator, model_validator

from pion.config import ModelConfig
from pion.errors import BadInput
from pipeline.job.section import Section, identity, refuse, runtime, scheduled
from pipeline.job.sources import ConversationSource, DataSource, Source

STAGES = ("prepare", "pretrain", "sft", "evaluate", "publish")


# ---------------------------------------------------------------- model and tokenizer


class Model(Section):
    """A preset and/or fields; a field given here overrides the preset's."""

    preset: str | None = identity(None, "a named model: pion-nano … pion-xl")
    d_model: int | None = identity(None, "width of the residual stream", gt=0)
    n_layers: int | None = identity(None, "number of blocks", gt=0)
    n_heads: int | None = identity(None, "query heads", gt=0)
    n_kv_heads: int | None = identity(None, "key/value heads", gt=0)
    d_ff: int | None = identity(None, "width of the feed-forward layer", gt=0)
    head_dim: int | None = identity(None, "width of one head; d_model / n_heads unless given", gt=0)
    vocab_size: int | None = identity(
        None, "embedding rows; the preset's, else the trained tokenizer's size", gt=0
    )
    seq_len: int | None = identity(None, "longest context; data.seq_len without a preset", gt=0)
    rope_theta: float | None = identity(None, "base of the rotary frequencies", gt=0)
    softcap: float | None = identity(
        None, "cap attention scores at ±softcap (not publishable as stock Qwen3)", gt=0
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
    """Train a byte-level BPE on the training documents."""

    vocab_size: int = identity(8192, "entries, the 256 bytes and 2 specials included", ge=258)
    max_mb: float = identity(64.0, "text to learn merges from, in MB", gt=0)


class TokenizerSection(Section):
    """Exactly one of train, file, hub."""

    train: TrainTokenizer | None = identity(None, "train a byte-level BPE on data.sources")
    file: str | None = identity(None, "a tokenizer.json")
    hub: str | None = identity(None, "a Hub repository (user/name) holding a tokenizer.json")
    revision: str | None = identity(None, "commit, branch or tag of `hub`")
    hub_file: str = identity("tokenizer.json", "its path in the `hub` repository")

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
    seq_len: int = identity(2048, "ids in a training row", ge=8)
    sources: list[DataSource] = identity([], "where the pretraining text comes from")
    held_out: float = identity(
        0.02, "share of documents (files, for python-docs) kept out of training", gt=0, lt=0.5
    )
    shard_rows: int = identity(10_000, "rows in a prepared shard", gt=0)
    window: int = identity(8, "shards whose rows are shuffled together", gt=0)


# ---------------------------------------------------------------- training stages


class Train(Section):
    """Fields both training stages have."""

    steps: int = scheduled(..., "optimizer steps", gt=0)
    global_batch: int = identity(64, "sequences in an optimizer step, on any hardware", gt=0)
    lr: float = scheduled(3e-4, "peak learning rate of AdamW", gt=0)
    min_lr: float = scheduled(3e-5, "learning rate at the end", ge=0)
    warmup_steps: int = scheduled(1000, "steps of linear warm-up", ge=0)
    schedule: Literal["wsd", "cosine", "constant"] = scheduled(
        "wsd", "warm-up–stable–decay, cosine, or constant after warm-up"
    )
    decay_shape: Literal["cosine", "linear"] = scheduled("cosine", "shape of wsd's decay")
    decay_fraction: float = scheduled(0.2, "last part of the run that wsd decays in", gt=0, le=1)
    optimizer: Literal["adamw", "muon"] = scheduled("adamw", "muon: for the blocks' matrices")
    muon_lr: float = scheduled(0.02, "peak learning rate of Muon", gt=0)
    muon_momentum: float = scheduled(0.95, "momentum of Muon", ge=0, lt=1)
    weight_decay: float = scheduled(0.1, "decoupled, on matrices and embeddings", ge=0)
    beta1: float = scheduled(0.9, "AdamW's first moment", ge=0, lt=1)
    beta2: float = scheduled(0.95, "AdamW's second moment", ge=0, lt=1)
    eps: float = scheduled(1e-8, "AdamW's epsilon", gt=0)
    clip: float = scheduled(1.0, "gradient norm limit; 0 = none", ge=0)
    max_spike: float | None = runtime(
        None,
        "a step whose loss is more than so many times the recent median is undone; none: no limit",
        gt=1,
    )
    init_from: str | None = identity(
        None, "start from a run, checkpoint, exported folder, Hub repository or .pt"
    )

    @model_validator(mode="after")
    def _schedule_fits(self) -> Train:
        mistakes = []
        if self.warmup_steps >= self.steps:
            mistakes.append(f"warmup_steps: {self.warmup_steps} must be below steps {self.steps}")
        if self.min_lr > self.lr:
            mistakes.append(f"min_lr: {self.min_lr} is above lr {self.lr}")
        return refuse(self, mistakes)


class Pretrain(Train):
    pass


class Sft(Train):
    lr: float = scheduled(2e-5, "peak learning rate of AdamW", gt=0)
    min_lr: float = scheduled(2e-6, "learning rate at the end", ge=0)
    warmup_steps: int = scheduled(100, "steps of linear warm-up", ge=0)
    schedule: Literal["wsd", "cosine", "constant"] = scheduled(
        "cosine", "warm-up–stable–decay, cosine, or constant after warm-up"
    )
    weight_decay: float = scheduled(0.01, "decoupled, on matrices and embeddings", ge=0)
    sources: list[ConversationSource] = identity(..., "where the conversations come from")
    held_out: float = identity(0.01, "share of conversations kept out of training", gt=0, lt=0.5)
    seq_len: int | None = identity(None, "ids in a packed row; data.seq_len unless given", ge=8)


# ---------------------------------------------------------------- evaluate and publish


class LmEval(Section):
    """Tasks of lm-evaluation-harness, run on the exported model."""

    tasks: list[str] = identity([], "task names; one whose data can't be had is reported skipped")
    include_path: str | None = identity(None, "folder with task definitions of your own")
    limit: int | None = identity(None, "documents per task", gt=0)


class Evaluate(Section):
    every: int | None = runtime(
        None, "steps between evaluations while training; a tenth of it", gt=0
    )
    rows: int = runtime(64, "held-out rows of an evaluation while training", gt=0)
    prompts: list[str] = runtime(["The meaning of life is"], "sampled at each evaluation")
    final_rows: int = identity(1024, "held-out rows of the final evaluation", gt=0)
    ngram_order: int = identity(4, "order of the n-gram baseline; 0 = none", ge=0, le=6)
    ngram_tokens: int = identity(2_000_000, "training tokens the n-gram baseline counts", gt=0)
    continuations: int = identity(200, "'true continuation' questions from held-out text", ge=0)
    packs: list[str] = identity([], "multiple-choice JSONL files {context, choices, answer}")
    lm_eval: LmEval = identity(LmEval(), "tasks of lm-evaluation-harness")


REQUIREMENT = re.compile(r"^\s*([a-z_]\w*(?:\.\w+)*)\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*$")


class Publish(Section):
    to: str = identity(..., "folder, or hf://user/name")
    private: bool = identity(True, "a Hub repository is made private")
    license: str | None = identity(None, "licence named in the model card (apache-2.0, mit …)")
    description: str | None = identity(None, "a sentence for the model card")
    cost: bool = runtime(False, "the model card says what the run took and cost")
    require: list[str] = identity([], "conditions on the results, such as bits_per_byte < 2.2")

    @field_validator("require")
    @classmethod
    def _readable(cls, require: list[str]) -> list[str]:
        for text in require:
            if not REQUIREMENT.match(text):
                raise ValueError(f"{text!r} is not `result < number` (or <=, >, >=)")
        return require


# ---------------------------------------------------------------- runtime


class Keep(Section):
    last: int = runtime(2, "newest checkpoints kept", ge=2)
    every: int | None = runtime(None, "keep each checkpoint at a multiple of so many steps", gt=0)
    best: bool = runtime(False, "keep the one with the lowest held-out loss")


class Checkpoint(Section):
    every_steps: int | None = runtime(None, "steps between checkpoints", gt=0)
    every_seconds: float | None = runtime(
        None,
        "seconds between checkpoints; derived from stall and preemption rate unless given",
        gt=0,
    )
    preemption_hours: float = runtime(2.0, "assumed mean time between preemptions", gt=0)
    keep: Keep = runtime(Keep(), "which checkpoints stay")
    grace: float = runtime(4.0, "seconds that SIGTERM leaves to save the last step", gt=0)
    max_undurable: float = runtime(
        1800.0, "seconds without a save, its store being down, after which training pauses", gt=0
    )
    linger: float | None = runtime(
        None,
        "seconds to keep trying while the store is down at a stage's end; 1800 on a rental, else 0",
        ge=0,
    )
    max_rewinds: int = runtime(3, "times in a row that training goes back after trouble", ge=0)


class Hardware(Section):
    workers: int | None = runtime(
        None, "Ray Train workers: one per GPU, else 1; 0 = train in this process, without Ray", ge=0
    )
    micro_batch: int | None = runtime(None, "sequences a worker computes at once; derived", gt=0)
    dtype: Literal["auto", "bfloat16", "float32"] = runtime("auto", "bfloat16 where it is fast")
    threads: int | None = runtime(None, "CPU threads of a worker; the cores shared out", gt=0)
    recompute: bool | None = runtime(None, "recompute activations to save memory; derived")
    compile: bool = runtime(False, "torch.compile the blocks")
    hang_seconds: float | None = runtime(
        None, "seconds without a step that count as a hang; 20 times the usual, at least 120", gt=0
    )
    deterministic: bool = runtime(False, "bit-identical on CUDA too, slower")
    shard_cache_gb: float = runtime(20.0, "disk for streamed Hub shards, in GB", gt=0)


class Budget(Section):
    hours: float | None = runtime(None, "machine hours of all attempts together", gt=0)
    dollars: float | None = runtime(None, "dollars of all attempts together", gt=0)
    dollars_per_hour: float | None = runtime(None, "this machine's price, if not rented", ge=0)


@dataclass(frozen=True)
class Price:
    """What a GPU costs to rent, in dollars per hour; None where it isn't offered that way."""

    spot: float | None = None
    on_demand: float | None = None


class Log(Section):
    every: int = runtime(10, "steps between metrics lines", gt=0)
    tensorboard: str | None = runtime(None, "folder for TensorBoard event files")
    wandb: str | None = runtime(None, "Weights & Biases project")


def _price(gpu: str, value: Any) -> Price:
    """A GPU's price as a job states it: one amount for both ways of renting, or each its own."""
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
    """One run: what to train, on what, how, and where its state lives."""

    name: str = runtime(
        ...,
        "name of the run in the store",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+=@-]*$",
        max_length=100,
    )
    seed: int = identity(42, "seeds initial weights and row order")
    store: str = runtime(
        "runs", "where state lives: a folder, file://, s3://bucket/prefix or hf://user/repo"
    )
    model: Model = identity(..., "the decoder: a preset's name, or a preset and/or fields")
    tokenizer: TokenizerSection = identity(..., "train one, or load one")
    data: Data = identity(Data(), "pretraining text")
    pretrain: Pretrain | None = identity(
        None, "the pretraining stage; none: start from sft.init_from"
    )
    sft: Sft | None = identity(None, "the fine-tuning stage")
    evaluate: Evaluate = identity(Evaluate(), "evaluation while training and at the end")
    publish: Publish | None = identity(None, "where the finished model goes")
    checkpoint: Checkpoint = runtime(Checkpoint(), "how often state is saved and what is kept")
    hardware: Hardware = runtime(Hardware(), "workers, precision, memory")
    budget: Budget = runtime(Budget(), "what the run may cost; it then stops with exit code 4")
    prices: dict[str, Price] | None = runtime(
        None,
        "dollars per hour of one rented GPU, {A40: 0.4, L40S: {spot: 0.5, on_demand: 0.9}}; "
        "SkyPilot's catalog unless given",
    )
    log: Log = runtime(Log(), "metrics")

    _folder: Path = PrivateAttr(default=Path("."))

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
    def _whole(self) -> Job:
        mistakes = []
        if self.pretrain is None and self.sft is None:
            mistakes.append("nothing to train: give `pretrain`, `sft` or both")
        if self.pretrain is None and self.sft is not None and self.sft.init_from is None:
            mistakes.append("sft.init_from: without `pretrain` it must name a model to start from")
        if self.pretrain is not None and not self.data.sources:
            mistakes.append("data.sources: empty, but `pretrain` needs text")
        elif self.tokenizer.train is not None and not self.data.sources:
            mistakes.append("data.sources: empty, but tokenizer.train learns from it")
        if self.model.softcap is not None and self.publish is not None:
            mistakes.append(
                "model.softcap: a capped model is not stock Qwen3 and can't be published as one; "
                "remove model.softcap or the publish section"
            )
        try:
            config = self.model_config_resolved()
        except BadInput as error:
            mistakes.append(f"model: {error}")
        else:
            for where, seq_len in (("data", self.data.seq_len), ("sft", self.sft_seq_len)):
                if seq_len > config.seq_len and (where == "data" or self.sft):
                    mistakes.append(
                        f"{where}.seq_len: {seq_len} exceeds the model's context {config.seq_len}"
                    )
        return refuse(self, mistakes)

    @property
    def folder(self) -> Path:
        """Folder of the job file, which input paths are relative to."""
        return self._folder

    def input_path(self, path: str) -> Path:
        """Absolute form of an input path of this job."""
        return (self._folder / Path(path).expanduser()).resolve()

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
        """(key, source) of all data of the job, such as `data.sources.0`."""
        found: list[tuple[str, Source]] = []
        found += [(f"data.sources.{n}", source) for n, source in enumerate(self.data.sources)]
        if self.sft is not None:
            found += [(f"sft.sources.{n}", source) for n, source in enumerate(self.sft.sources)]
        return found

    def section(self, stage: str) -> Train:
        """The section of a training stage."""
        section = getattr(self, stage)
        assert isinstance(section, Train)
        return section

    def model_config_resolved(self) -> ModelConfig:
        """The decoder's settings: preset, then fields, then what data and tokenizer imply.

        Raises BadInput for an unknown preset or a shape that does not fit together.
        """
        fields = self.model.model_dump(exclude={"preset"}, exclude_none=True)
        if self.model.preset is not None:
            return ModelConfig.preset(self.model.preset, **fields)
        if self.tokenizer.train is not None:
            fields.setdefault("vocab_size", self.tokenizer.train.vocab_size)
        fields.setdefault("seq_len", max(self.data.seq_len, self.sft_seq_len))
        needed = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size")
        missing = [name for name in needed if name not in fields]
        if missing:
            raise BadInput(f"give a preset, or also {', '.join(missing)}")
        return ModelConfig.of(fields)
