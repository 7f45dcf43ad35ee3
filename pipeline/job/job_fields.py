"""The job file: every field of a run, its default and its meaning, and what follows from them.

How a field is declared, and what it means for finished stages: section.py. Other sections are in
the modules whose names end in section or sections. Paths of inputs are relative to the job file,
paths of outputs to the working directory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationInfo, field_validator, model_validator

from pion.config.lora import Lora as LoraSettings
from pion.config.model_config import APART, OPTIONAL, ModelConfig
from pion.config.part_fields import FACTOR
from pion.data.phased_order import MixPhase
from pion.errors import BadInput
from pion.files import expand
from pipeline.job.data_section import OF_EVALUATE, Data, Source, in_bucket
from pipeline.job.evaluate_and_publish_sections import Evaluate, Publish
from pipeline.job.hardware_section import Hardware
from pipeline.job.mixes import mix_phases, source_names
from pipeline.job.model_section import Base, Model, TokenizerSection
from pipeline.job.prefer_section import Prefer
from pipeline.job.reinforce_section import Reinforce
from pipeline.job.runtime_sections import (
    Budget,
    Checkpoint,
    Deadline,
    Log,
    Price,
    price_of,
)
from pipeline.job.section import MOST_OF_A_NAME, NAME, Section, identity, runtime
from pipeline.job.sft_and_lora_sections import Conversations, Sft
from pipeline.job.stages import CONVERSING, TRAINING, data_key
from pipeline.job.train_sections import Pretrain, Train, phases_of, with_recipe


class JobFields(Section):
    """The fields of a job, and what follows from them. Whether they fit together, `Job` checks."""

    name: str = runtime(
        ...,
        "name of the run in its store",
        pattern=NAME,
        max_length=MOST_OF_A_NAME,
    )
    seed: int = identity(42, "seed of the initial weights and of the row order", most=2**63 - 1)
    store: str = runtime(
        "runs", "where state is kept: a folder, file://, s3://bucket/prefix or hf://user/repo"
    )
    model: Model = identity(
        ...,
        "the decoder. Name a model to start from, name a preset, name a preset and replace some of "
        "its fields, or set every field yourself. Unset, a field has the preset's value",
    )
    tokenizer: TokenizerSection | None = identity(
        None,
        "the tokenizer. Set exactly one of `train`, `file` and `hub`. This section is required, "
        "except with model.from, which brings its own tokenizer",
    )
    data: Data = identity(Data(), "the pretraining text")
    pretrain: Pretrain | None = identity(None, "the pretraining stage")
    sft: Sft | None = identity(None, "the fine-tuning stage")
    prefer: Prefer | None = identity(
        None, "the stage that learns which of two answers is better, or which answers are good"
    )
    reinforce: Reinforce | None = identity(
        None, "the stage that learns from rewards, which a program gives to sampled answers"
    )
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
    deadline: Deadline | None = runtime(
        None,
        "when the run should be done. `pion launch` then rents spot machines as long as there is "
        "time, and on-demand machines when there is not. A run that is late continues",
    )
    prices: dict[str, Price] | None = runtime(
        None,
        "dollars per hour of one rented GPU: {A40: 0.4, L40S: {spot: 0.5, on_demand: 0.9}}; "
        "unset: the prices of SkyPilot's catalog",
        most=FACTOR,
    )
    log: Log = runtime(Log(), "where metrics go, and how often")

    _folder: Path = PrivateAttr(default=Path("."))
    _base: Base | None = PrivateAttr(default=None)
    _kept: Callable[[str], Path | None] | None = PrivateAttr(default=None)

    @field_validator("model", mode="before", json_schema_input_type=str | Model)
    @classmethod
    def _preset_name(cls, model: Any) -> Any:
        return {"preset": model} if isinstance(model, str) else model

    @field_validator(
        "prices", mode="before", json_schema_input_type=dict[str, float | Price] | None
    )
    @classmethod
    def _dollars(cls, prices: Any) -> Any:
        if not isinstance(prices, dict):
            return prices
        return {str(gpu): price_of(str(gpu), value) for gpu, value in prices.items()}

    @field_validator("pretrain", mode="before")
    @classmethod
    def _recipe(cls, pretrain: Any, info: ValidationInfo) -> Any:
        model = info.data.get("model")
        if model is None or not isinstance(pretrain, dict) or pretrain.get("recipe") != "pion2":
            return pretrain
        return with_recipe(pretrain, model)

    @model_validator(mode="after")
    def _start_model(self, info: ValidationInfo) -> JobFields:
        self._base = (info.context or {}).get("base")
        return self

    def _use_defaults_of_base(self, config: ModelConfig) -> None:
        """Choose what the job leaves open where it starts from a trained model."""
        if "seq_len" not in self.data.model_fields_set:
            shorter = min(self.data.seq_len, config.seq_len)
            self.data = self.data.model_copy(update={"seq_len": shorter})
        for stage in self.train_stages:
            section = self.section(stage)
            if chosen := section.defaults_from_base(self.seq_len(stage)):
                setattr(self, stage, section.model_copy(update=chosen))

    @property
    def base(self) -> Base | None:
        """The model that the run starts from; None if it starts from random weights."""
        return self._base

    @property
    def uses_model_template(self) -> bool:
        """Whether conversations are written by the chat template of `model.from`."""
        has_one = self._base is not None and self._base.template is not None
        decides = self.template_stage
        return has_one and decides is not None and self.conversations(decides).template == "auto"

    @property
    def template_stage(self) -> str | None:
        """The stage whose fields decide how conversations are written; None: there are none."""
        return next((stage for stage in self.train_stages if stage in CONVERSING), None)

    @property
    def converses(self) -> bool:
        """Whether the model learns from conversations, so that people can talk to it."""
        return self.template_stage is not None

    @property
    def folder(self) -> Path:
        """The folder of the job file. Input paths are relative to it."""
        return self._folder

    def input_path(self, path: str) -> Path:
        """Return the absolute form of an input path of this job.

        Raises BadInput for a path that no file can have, and for links that lead to themselves.
        """
        try:
            return (self._folder / expand(path)).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise BadInput(f"{path!r:.200} is no path of a file ({error})") from None

    def kept_path(self, path: str) -> Path:
        """Return where this run reads one of `kept_inputs`: what it has kept, or else the path.

        Raises BadInput as `input_path` does, and errors of the store that has it.
        """
        return (self._kept and self._kept(path)) or self.input_path(path)

    @property
    def kept_inputs(self) -> dict[str, tuple[str, str]]:
        """The inputs that a run keeps when it begins: by key, the stage that reads it, and its
        path."""
        lm_eval = self.evaluate.lm_eval
        tokenizer = None if self.tokenizer is None else self.tokenizer.file
        named: dict[str, dict[str, str | None]] = {
            "prepare": {"tokenizer.file": tokenizer, **dict(self.removed_sets)},
            **{stage: {**self.section(stage).files} for stage in self.train_stages},
            "evaluate": {
                **self.evaluate.sets,
                "evaluate.text": self.evaluate.text,
                "evaluate.lm_eval.include_path": lm_eval.include_path,
            },
        }
        return {
            key: (stage, path)
            for stage, paths in named.items()
            for key, path in paths.items()
            if path is not None
        }

    def model_name(self, source: str, commit: str | None = None) -> str:
        """Return what any folder would call a model that this job names: a path, or the name.

        Of a model with a `commit` on the Hub, it is the repository. Raises BadInput as `input_path`
        does.
        """
        if commit is not None:
            return source.removeprefix("hf://").partition("@")[0]
        path = self.input_path(source)
        return str(path) if path.exists() else source

    @property
    def sft_seq_len(self) -> int:
        """The tokens in a row of conversations, also where the job has none."""
        return self.sft.seq_len if self.sft and self.sft.seq_len else self.data.seq_len

    @property
    def train_stages(self) -> list[str]:
        """The training stages this job has, in order."""
        return [stage for stage in TRAINING if getattr(self, stage) is not None]

    def stage_before(self, stage: str) -> str | None:
        """Return the training stage before a training stage; None: it is the first."""
        number = self.train_stages.index(stage)
        return self.train_stages[number - 1] if number else None

    @property
    def stages(self) -> list[str]:
        """All stages this job has, in order."""
        return ["prepare", *self.train_stages, "evaluate", *(["publish"] if self.publish else [])]

    def sources(self) -> list[tuple[str, Source]]:
        """Return each data source of the job with its key, such as `data.sources.0`."""
        sections = {key: getattr(self, key) for key in map(data_key, TRAINING)}
        return [
            (f"{key}.sources.{number}", source)
            for key, section in sections.items()
            if section is not None
            for number, source in enumerate(section.sources)
        ]

    def data_section(self, part: str) -> Data | Conversations:
        """Return the section with the sources of a part of the data."""
        key = data_key(part)
        section = getattr(self, key)
        assert isinstance(section, Data | Conversations)
        return section

    @property
    def bucket_inputs(self) -> dict[str, str]:
        """The addresses of the sources that are read from buckets, by their keys."""
        return {key: source.path for key, source in self.sources() if in_bucket(source)}

    @property
    def text_settings(self) -> Data:
        """The section `data` with what it leaves to other sections: whether documents are apart,
        and which evaluation sets the text is cleaned of."""
        clean = self.data.clean
        if clean is not None:
            sets = [path for _, path in self.removed_sets]
            clean = clean.model_copy(update={"decontaminate": sets})
        return self.data.model_copy(update={"documents": self.within_documents, "clean": clean})

    @property
    def mix_phases(self) -> list[MixPhase]:
        """What pretraining reads in its phases; nothing if all phases read the same."""
        return mix_phases(self.data, self.pretrain)

    @property
    def mixes(self) -> bool:
        """Whether the phases of pretraining mix the sources, which are then measured apart."""
        return self.pretrain is not None and any(phase.mix for phase in self.pretrain.phases)

    @property
    def borders(self) -> list[tuple[str, int]]:
        """The steps, each with its stage, after which pretraining reads something else."""
        return [
            ("pretrain", phase.start // self.section("pretrain").global_batch)
            for phase in self.mix_phases[1:]
        ]

    def joined(self, stage: str) -> int:
        """Return how many rows of a training stage are read as one, where they are longest."""
        return max([1, *(p.length for p in self.mix_phases)]) if stage == "pretrain" else 1

    @property
    def tokenizer_sources(self) -> list[str]:
        """The names of the sources that a tokenizer is trained on: those of the first phase."""
        phases = self.mix_phases
        return list(phases[0].mix or ()) if phases else source_names(self.data)

    @property
    def removed_sets(self) -> list[tuple[str, str]]:
        """The key and the path of each evaluation set that data.clean.decontaminate means."""
        sets: list[tuple[str, str]] = []
        for number, name in enumerate(self.data.clean.decontaminate if self.data.clean else []):
            if name == OF_EVALUATE:
                sets += self.evaluate.sets.items()
            else:
                sets.append((f"data.clean.decontaminate.{number}", name))
        return sets

    def section(self, stage: str) -> Train:
        """Return the section of a training stage."""
        section = getattr(self, stage)
        assert isinstance(section, Train)
        return section

    def trained_tokens(self, stage: str) -> int | None:
        """Return the tokens that a stage trains on: steps × rows × length. None: its steps are not
        known yet."""
        section, seq_len = self.section(stage), self.seq_len(stage)
        if not section.steps_are_known:
            return None
        return section.total_steps * section.rows_of_step(seq_len) * seq_len

    def conversations(self, stage: str) -> Conversations:
        """Return the section of a stage that learns from conversations."""
        section = getattr(self, stage)
        assert isinstance(section, Conversations)
        return section

    def selects_best(self, stage: str) -> bool:
        """Whether the checkpoint of `stage` with the lowest held-out loss is what is published."""
        return self.evaluate.checkpoint == "best" and stage == self.train_stages[-1]

    def lora(self, stage: str) -> LoraSettings | None:
        """Return LoRA's settings in a training stage; None: the stage trains all weights."""
        section = getattr(self, stage) if stage in CONVERSING else None
        return None if section is None or section.lora is None else section.lora.settings()

    def same_lora_as(self, stage: str) -> str | None:
        """Return the stage with LoRA whose settings LoRA would need in `stage`, too, because one of
        the two trains the additions of the other further; None: it may have any."""
        others = (each for each in self.train_stages if each != stage and self.lora(each))
        return next(others, None) if stage in CONVERSING else None

    def lora_before(self, stage: str) -> str | None:
        """Return the stage whose additions LoRA trains further in `stage`; None: it begins with new
        ones, or there are none."""
        before = self.stage_before(stage)
        if before is None or self.lora(stage) is None or self.lora(before) is None:
            return None
        return before

    def seq_len(self, stage: str) -> int:
        """Return the tokens in a row of a training stage."""
        section, text = getattr(self, stage), self.data.seq_len
        return text if section is None else section.row_length(text, self.sft_seq_len)

    def has_documents(self, stage: str) -> bool:
        """Return whether a row of a training stage has several documents."""
        return stage in CONVERSING or self.within_documents

    @property
    def within_documents(self) -> bool:
        """Whether tokens of pretraining text attend only within their own document."""
        if self.data.documents is not None:
            return self.data.documents
        return self.model_config_resolved().hides

    def config_after(self, stage: str | None) -> ModelConfig:
        """Return the settings of the model that a training stage has left, or of a new one (None).

        The last phase of pretraining decides how the model reads.
        """
        config = self.model_config_resolved()
        if stage is None or self.pretrain is None or not self.pretrain.phases:
            return config
        return replace(config, **phases_of(self.pretrain)[-1].config_fields())

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
        phases = self.pretrain.phases if self.pretrain else []
        longest = max((phase.seq_len or 0 for phase in phases), default=0)
        fields.setdefault("seq_len", max(self.data.seq_len, self.sft_seq_len, longest))
        needed = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size")
        missing = [name for name in needed if name not in fields]
        if missing:
            raise BadInput(f"give a preset, or these fields too: {', '.join(missing)}")
        return ModelConfig.of(fields)

    def _config_of_base(self) -> ModelConfig:
        """Return the settings of the model to start from, with the job's context and the parts that
        learn from a model."""
        if self._base is None:
            raise BadInput("its shape is not known")
        config = self._base.model_config
        seq_len = self.model.seq_len or config.seq_len
        if seq_len > config.seq_len and config.positions == "learned":
            raise BadInput(
                f"seq_len {seq_len:,} exceeds the {config.seq_len:,} positions that "
                f"{self._base.source} has learned; it can only be shortened"
            )
        changed: dict[str, Any] = {}
        if self.model.gates is not None:
            changed["gates"] = self.model.gates
        for name in self.model.model_fields_set.intersection(APART):
            given, own = getattr(self.model, name), getattr(config, name)
            if given is not None:  # null takes the part away
                given = ({} if own is None else asdict(own)) | given.model_dump(exclude_unset=True)
            changed[name] = given
        return replace(config, seq_len=seq_len, **changed)
