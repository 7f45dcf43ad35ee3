"""Train with TRL on pairs, or on answers with rewards, and write what it reports as JSON.

`python -m tests.pion.train.trl_losses FOLDER`: the folder has the model (`model`), the reference
(`reference`), both as Hugging Face loads them, and `asked.json`: a list of [kind, settings, steps],
where each step is a list of examples. An answer with a reward (`grpo`) is what we have sampled.
Importing TRL takes up to a minute, so one process serves all.
"""

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer

STEADY = {
    "max_length": None,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "num_train_epochs": 1,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}


def as_it_is(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
    """Take ids in the place of texts."""
    return dataset


def train(folder: Path, kind: str, fields: dict[str, Any], steps: list[list[Any]]) -> list[float]:
    """Return the loss of each step."""
    model, reference = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype="float32")
        for name in ("model", "reference")
    )
    # torch learns nothing where the id of padding is looked up, and here this id has a meaning.
    for each in (model, reference):
        each.get_input_embeddings().padding_idx = None
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "model" / "tokenizer.json"))
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    config, trainer = (KTOConfig, KTOTrainer) if kind == "kto" else (DPOConfig, DPOTrainer)
    trainer._prepare_dataset = as_it_is
    args = config(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=len(steps[0]),
        train_sampling_strategy="sequential",
        **STEADY,
        **fields,
    )
    made = trainer(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=Dataset.from_list([example for step in steps for example in step]),
        processing_class=tokenizer,
    )
    made.train()
    return [row["loss"] for row in made.state.log_history if "loss" in row]


def train_by_rewards(
    folder: Path, number: int, fields: dict[str, Any], steps: list[list[Any]]
) -> list[float]:
    """Return each gradient's norm, and write what was trained. LoRA begins with an `adapter`."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32")
    model.get_input_embeddings().padding_idx = None
    if adapter := fields.pop("adapter", None):
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "model" / "tokenizer.json"))
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    answers, coming = fields["num_generations"], iter(steps)
    given: list[Any] = []

    def rollouts(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        given[:] = next(coming)
        names = ("prompt_ids", "completion_ids", "logprobs")
        return {name: [answer[name] for answer in given] for name in names}

    def rewards(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        return [answer["reward"] for answer in given]

    args = GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=len(steps[0]),
        steps_per_generation=1,
        num_iterations=1,
        loss_type="dapo",
        beta=0.0,
        temperature=1.0,
        shuffle_dataset=False,
        **{k: v for k, v in STEADY.items() if k != "max_length"},
        **fields,
    )
    prompts = [{"prompt": str(n)} for n in range(len(steps) * len(steps[0]) // answers)]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=args,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        rollout_func=rollouts,
    )
    trainer.train()
    named = trainer.model.named_parameters()
    weights = {n.replace(".default", ""): w.detach() for n, w in named if w.requires_grad}
    save_file(weights, folder / f"weights-{number}.safetensors")
    return [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]


def main() -> None:
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "asked.json").read_text())
    found = [
        train_by_rewards(folder, number, *rest) if kind == "grpo" else train(folder, kind, *rest)
        for number, (kind, *rest) in enumerate(asked)
    ]
    (folder / "losses.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
