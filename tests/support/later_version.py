"""A later version of pion: its sections, models and plans have fields that today's don't have.

With its default, each field computes what is computed today, unless a test changes that.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from pion.config.model_config import ModelConfig
from pion.later_fields import later_field
from pion.train.settings import ComputePlan
from pipeline.job import Job, Section
from pipeline.job.data_section import Data, TextFiles
from pipeline.job.evaluate_and_publish_sections import Evaluate, Publish
from pipeline.job.model_section import Model
from pipeline.job.section import identity, scheduled
from pipeline.job.sft_and_lora_sections import Sft
from pipeline.job.train_sections import Pretrain


@dataclass(frozen=True, kw_only=True)
class LaterConfig(ModelConfig):
    window: int | None = later_field(None, before=None)
    gate: bool = later_field(False, before=False)


@dataclass(frozen=True)
class LaterPlan(ComputePlan):
    shards: int = later_field(1, before=1)


class LaterModel(Model):
    window: int | None = identity(None, "tokens that a query sees")
    gate: bool | None = identity(None, "gate the residual stream")


class LaterText(TextFiles):
    kind: Literal["text"]
    lowercase: bool = identity(False, "lower-case the text", before=False)


class LaterData(Data):
    sources: list[LaterText] = identity([], "where the text comes from")
    shuffle: str = identity("rows", "what is shuffled", before="rows")


class LaterPretrain(Pretrain):
    z_loss: float = scheduled(0.0, "weight of the z-loss", before=0.0)
    teacher: str | None = identity("none", "distilled from", before="none")


class LaterSft(Sft):
    z_loss: float = scheduled(0.0, "weight of the z-loss", before=0.0)


class Judge(Section):
    name: str | None = identity(None, "a model that judges")
    rounds: int = identity(3, "how often it is asked")


class LaterEvaluate(Evaluate):
    judge: Judge = identity(Judge(), "a model that judges samples", before=Judge())


class LaterPublish(Publish):
    formats: list[str] = identity([], "other formats", before=[])


class LaterJob(Job):
    model: LaterModel = identity(..., "the decoder")
    data: LaterData = identity(LaterData(), "pretraining text")
    pretrain: LaterPretrain | None = identity(None, "pretraining")
    sft: LaterSft | None = identity(None, "fine-tuning")
    evaluate: LaterEvaluate = identity(LaterEvaluate(), "evaluation")
    publish: LaterPublish | None = identity(None, "publishing")


def install(monkeypatch, job=LaterJob, config=LaterConfig):
    """Make this process that later version."""
    exports = ("pion.formats.huggingface.rows", "pion.formats.huggingface.bundled_code")
    for module in (
        "pipeline.job.job_fields",
        "pipeline.job.model_section",
        "pion.formats.load",
        *exports,
        "pion.formats.seeds.pion_and_tachyon",
    ):
        monkeypatch.setattr(import_module(module), "ModelConfig", config)
    monkeypatch.setattr("pion.train.settings.ComputePlan", LaterPlan)
    for module in ("pipeline.job.file", "pipeline.training.train_request"):
        monkeypatch.setattr(import_module(module), "Job", job)


# ---------------------------------------------------------------- and one later still


@dataclass(frozen=True, kw_only=True)
class ChangedConfig(LaterConfig):
    """A version in which today's models are no longer the default."""

    window: int | None = later_field(16, before=None)


class ChangedPretrain(LaterPretrain):
    z_loss: float = scheduled(1e-4, "weight of the z-loss", before=0.0)
    teacher: str | None = identity(None, "distilled from", before="none")


class ChangedJob(LaterJob):
    pretrain: ChangedPretrain | None = identity(None, "pretraining")
