"""The job file: how the model is evaluated, and where it is published.

A changed default or a new field moves digests: see train_sections.py.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import field_validator

from pipeline.job.section import (
    ROWS,
    STEPS,
    Section,
    identity,
    made,
    refuse,
    runtime,
)


class LmEval(Section):
    """Tasks of lm-evaluation-harness, run on the exported model."""

    tasks: list[str] = identity(
        [], "names of the tasks; a task whose data cannot be loaded is reported as skipped"
    )
    include_path: str | None = identity(None, "folder with your own task definitions")
    limit: int | None = identity(
        None,
        "number of questions per task, drawn with a seed, so that every run gets the same "
        "questions; unset: all",
        gt=0,
        most=10**9,
    )
    chat: Literal["auto", True, False] = identity(
        "auto",
        "ask the model in its chat format, with the examples as turns. auto: only if the job has "
        "sft, and only in tasks in which the model writes an answer (generate_until); true: in all "
        "tasks; false: in none",
        # Jobs of 0.1.0 have no chat. Evaluations that they finished stay finished.
        before="auto",
    )


class Core(Section):
    """The CORE benchmark by nanochat's rules, on its published questions, which you have."""

    path: str = identity(
        ...,
        "the published archive of questions, eval_bundle.zip, as it was downloaded",
    )
    items: int | Literal["all"] = identity(
        500,
        "how many items of each task Pion asks each model, or all. The items are the same in every "
        "run",
        most=10**7,
    )
    cropped: bool = identity(
        False, "measure also a model whose context is too short for most questions"
    )

    @field_validator("items", mode="before")
    @classmethod
    def _countable(cls, items: Any) -> Any:
        counted = type(items) is int and items > 0
        return refuse(
            items,
            made({f"{items!r:.100} is no number of items, or all": not counted and items != "all"}),
        )


class Evaluate(Section):
    every: int | None = runtime(
        None,
        "steps between two evaluations during training; unset: a tenth of the stage",
        gt=0,
        most=STEPS,
    )
    rows: int = runtime(64, "held-out rows in each evaluation during training", gt=0, most=ROWS)
    prompts: list[str] = runtime(
        ["The meaning of life is"], "texts that the model continues at each evaluation"
    )
    final_rows: int = identity(1024, "held-out rows in the final evaluation", gt=0, most=ROWS)
    ngram_order: int = identity(4, "order of the n-gram model to compare with; 0: none", ge=0, le=6)
    ngram_tokens: int = identity(
        2_000_000, "training tokens that the n-gram model counts", gt=0, most=10**9
    )
    continuations: int = identity(
        200,
        "number of multiple-choice questions made from held-out text, in which the model chooses "
        "the real continuation",
        ge=0,
        most=10**6,
    )
    packs: list[str] = identity(
        [], "JSONL files of multiple-choice questions {context, choices, answer}"
    )
    core: Core | None = identity(
        None, "the CORE benchmark, on its published questions, which you have", before=None
    )
    lm_eval: LmEval = identity(LmEval(), "tasks of lm-evaluation-harness")
    text: str | None = identity(
        None,
        "with model.from: what the model is measured on before and after training, to see what it "
        "has forgotten. A text file, a JSON Lines file with `text` in each line, or a folder of "
        "either; its first final_rows rows count. Unset: a sample that comes with Pion",
        before=None,
    )
    checkpoint: Literal["last", "best"] = identity(
        "last",
        "which checkpoint of the last training stage is evaluated and published. best: the one "
        "with the lowest held-out loss among the evaluations during training. Pion keeps this "
        "checkpoint, and training waits at each evaluation until the checkpoint is stored",
        before="last",
    )

    @property
    def sets(self) -> dict[str, str]:
        """The paths of the questions, by their keys."""
        sets = {f"evaluate.packs.{n}": path for n, path in enumerate(self.packs)}
        return sets if self.core is None else sets | {"evaluate.core.path": self.core.path}


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
        "precision of the published embeddings and of the head; bfloat16: half the size, rounded "
        "after evaluation",
        before="float32",
    )
    dtype: Literal["float32", "bfloat16"] = identity(
        "float32",
        "precision of all published weights; bfloat16: half the size, rounded after evaluation. "
        "The card says what the rounding costs",
        before="float32",
    )
    adapter: bool = identity(
        False,
        "publish LoRA's additions alone, as a folder that peft loads with its base; false: merged "
        "into the base",
        before=False,
    )
    gguf: bool = identity(
        False,
        "put a GGUF file (f16) and a Modelfile next to the weights, for llama.cpp, LM Studio and "
        "Ollama",
        before=False,
    )
    cost: bool = runtime(False, "write the run's time and cost on the model card")
    require: list[str] = identity(
        [],
        "publish only if all these conditions hold, such as bits_per_byte < 2.2 or "
        "pretrain.bits_per_byte < 2.2; a name without a stage is the published model's result",
    )
    even_if_worse: bool = runtime(
        False,
        "publish also a model that a stage made worse, by two standard errors, in what the stage "
        "learns: held-out text, answers, pairs or rewards",
    )

    @field_validator("require")
    @classmethod
    def _readable(cls, require: list[str]) -> list[str]:
        unreadable = [text for text in require if not REQUIREMENT.match(text)]
        mistakes = [f"{text!r} is not `result < number` (or <=, >, >=)" for text in unreadable]
        return refuse(require, mistakes)
