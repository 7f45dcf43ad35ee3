"""The job file as a whole: whether its fields fit together."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.train.phases import check_phases_of_model
from pipeline.job.data_section import OF_EVALUATE
from pipeline.job.job_fields import JobFields
from pipeline.job.mixes import mistakes_of_phases
from pipeline.job.model_section import NEXT_TO_FROM
from pipeline.job.section import made, mistakes_of, refuse
from pipeline.job.sft_and_lora_sections import Conversations
from pipeline.job.stages import CONVERSING
from pipeline.job.train_sections import phases_of


class Job(JobFields):
    """One run: which model to train, on which data, how, and where to keep its state."""

    @model_validator(mode="after")
    def _whole(self) -> Job:
        mistakes = [*self._mistakes_of_start(), *self._missing(), *self._mistakes_of_options()]
        try:
            config = self.model_config_resolved()
        except BadInput as error:
            return refuse(self, [*mistakes, f"model: {error}"])
        if self._base is not None:
            self._use_defaults_of_base(config)
        return refuse(self, mistakes + self._misfits(config))

    def _misfits(self, config: ModelConfig) -> list[str]:
        """Return what does not fit the model."""
        lengths = {"data": self.data.seq_len} | ({"sft": self.sft_seq_len} if self.sft else {})
        mistakes = [
            f"{where}.seq_len: {seq_len} exceeds the model's context {config.seq_len}"
            for where, seq_len in lengths.items()
            if seq_len > config.seq_len
        ]
        for stage in self.train_stages:
            mistakes += self.section(stage).misfits(self.seq_len(stage), config.seq_len)
        mistakes += self._too_short(config)
        if self.pretrain is not None:
            mistakes += mistakes_of_phases(self.text_settings, self.pretrain, config)
        first = next(iter(self.train_stages), "")
        from_base = self._base if first in CONVERSING else None
        if from_base is not None and self.lora(first) is not None:
            mistakes += mistakes_of(config.check_frozen, from_base.model_config)
        for stage in self.train_stages:
            section, lora = self.section(stage), self.lora(stage)
            if section.window_schedule != "constant" and config.windows is None:
                mistakes.append(f"{stage}.window_schedule: the model has no windows")
            phases = phases_of(section)
            wrong = mistakes_of(check_phases_of_model, phases, config, section.without_loss)
            if lora is not None:
                wrong += [f"lora.{mistake}" for mistake in mistakes_of(lora.targets_of, config)]
            mistakes += [f"{stage}.{mistake}" for mistake in wrong]
        return mistakes

    def _too_short(self, config: ModelConfig) -> list[str]:
        """Return the fields by which training rows are too short for a part of the model."""
        lengths = {}
        for stage in self.train_stages:
            section = self.section(stage)
            own = isinstance(section, Conversations) and section.seq_len is not None
            lengths[f"{stage if own else 'data'}.seq_len"] = self.seq_len(stage)
        return [
            f"{field}: {why}"
            for field, tokens in lengths.items()
            for _, part in config.parts()
            if (why := part.too_short(tokens))
        ]

    def _mistakes_of_start(self) -> list[str]:
        """Return what is wrong with what the run starts from."""
        if self.model.base is None:
            meaning = type(self).model_fields["tokenizer"].description
            return made(
                {
                    f"tokenizer: missing: {meaning}": self.tokenizer is None,
                    "evaluate.text: only a model that the run starts from (model.from) is measured "
                    "before training; remove it": self.evaluate.text is not None,
                }
            )
        decided = [
            f"model.{name}: the model that the run starts from decides this. Next to `from`, only "
            f"{', '.join(NEXT_TO_FROM[:-1])} and {NEXT_TO_FROM[-1]} can be given"
            for name in sorted(self.model.model_fields_set - {"base", *NEXT_TO_FROM})
        ]
        others = {
            "tokenizer: model.from brings its own tokenizer; remove this section": self.tokenizer,
            "model.from: the model was not looked up, so its shape is not known": (
                self._base is None
            ),
        }
        return decided + made(others)

    def _missing(self) -> list[str]:
        """Return what the job lacks."""
        pretrain, sft, base = self.pretrain, self.sft, self.model.base
        trains_tokenizer = self.tokenizer is not None and self.tokenizer.train is not None
        no_text = not self.data.sources
        mistakes = {
            "nothing to train: give pretrain, sft, prefer or reinforce": not self.train_stages,
            "model.from: without `pretrain` it must name a trained model to start from": (
                pretrain is None and not base and self.train_stages
            ),
            "data.sources: empty, but `pretrain` needs text": pretrain is not None and no_text,
            "data.sources: empty, but tokenizer.train learns from it": (
                pretrain is None and trains_tokenizer and no_text
            ),
        }
        for stage in self.train_stages:
            before = self.lora_before(stage)
            mistakes[
                f"{stage}.lora: it trains the additions of {before}.lora further, so rank, alpha, "
                f"targets and base_dtype must be those of {before}.lora. Write the same in both. "
                f"Or remove {stage}.lora: then {before}'s additions are merged, and all weights "
                f"are trained. For other additions, publish the model after {before}, and name it "
                "in model.from of another job"
            ] = before is not None and self.lora(before) != self.lora(stage)
        if sft is not None:
            mistakes["sft.steps: missing: give steps, or epochs in their place"] = (
                base is None and sft.steps is None and sft.epochs is None
            )
        return made(mistakes)

    def _mistakes_of_options(self) -> list[str]:
        """Return the options of an adapter and of a chat format that have no effect."""
        publish, last = self.publish, next(reversed(self.train_stages), "")
        mistakes: dict[str, object] = {
            "evaluate.lm_eval.chat: true, but the model learns no chat format: the job has no sft "
            "and no model.from. Remove it, or add sft": (
                self.evaluate.lm_eval.chat is True
                and not self.converses
                and self.model.base is None
            ),
            "hardware.fsdp: true, but a model that is divided between GPUs can't sample answers, "
            "as `reinforce` does. Remove it, or use GPUs that hold the whole model": (
                self.hardware.sharded
                and any(self.section(stage).sampled for stage in self.train_stages)
            ),
        }
        if publish is not None and publish.adapter:
            mistakes |= {
                f"publish.{name}: an adapter is published in float32": value != "float32"
                for name, value in (("dtype", publish.dtype), ("embeddings", publish.embeddings))
            }
            mistakes[
                f"publish.adapter: only a job with {last if self.converses else 'sft'}.lora trains "
                "an adapter"
            ] = self.lora(last) is None
        mistakes |= self._mistakes_of_templates()
        if (clean := self.data.clean) is not None:
            mistakes[
                f"data.clean.decontaminate: `{OF_EVALUATE}` means the sets of the section "
                "`evaluate`, which has neither packs nor core"
            ] = OF_EVALUATE in clean.decontaminate and not self.evaluate.sets
        return made(mistakes)

    def _mistakes_of_templates(self) -> dict[str, object]:
        """Return what may be wrong with the template of conversations, and whether it is."""
        mistakes: dict[str, object] = {}
        decides = self.template_stage
        for stage in self.train_stages:
            if stage in CONVERSING and stage != decides:
                mistakes |= {
                    f"{stage}.{name}: its conversations are written as those of {decides} are. Set "
                    f"{decides}.{name} in its place": name in self.section(stage).model_fields_set
                    for name in ("template", "system", "template_options")
                }
        if decides is not None and not self.uses_model_template:
            section = self.conversations(decides)
            given = {
                "system": section.system is not None,
                "template_options": section.template_options,
            }
            mistakes |= {
                f"{decides}.{name}: it is for the chat template of a model (model.from), and this "
                "job uses Pion's own, which writes only what is in the data": is_given
                for name, is_given in given.items()
            }
        return mistakes


def without_questions(job: Job) -> dict[str, Any]:
    """Return changes, by dotted key, with which the evaluation asks no questions.

    The text stays cleaned of the same evaluation sets, so prepared data are shared.
    """
    changes: dict[str, Any] = {
        "evaluate.packs": [],
        "evaluate.core": None,
        "evaluate.lm_eval": {},
    }
    if job.removed_sets:
        changes["data.clean.decontaminate"] = [path for _, path in job.removed_sets]
    return changes
