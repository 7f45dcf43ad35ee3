"""Made-up tasks for lm-eval, of every kind, and a tiny model of Pion's own to ask."""

import json
from pathlib import Path
from typing import Any

import torch

from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config

QUESTIONS = 12
EXAMPLES = 5

HEAD = """
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl, train: examples.jsonl}}
test_split: test
metadata: {version: 1}
"""
SCORES_CHOICES = """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITES_ANSWERS = """
fewshot_split: train
num_fewshot: 2
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["Question:", "</s>"], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
SCORES_TEXTS = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""
TASKS = {
    "local_choices": HEAD + SCORES_CHOICES,
    "local_answers": HEAD + WRITES_ANSWERS,
    "local_begun": HEAD + WRITES_ANSWERS + 'gen_prefix: "The sum is"',
    "local_described": HEAD + WRITES_ANSWERS + 'description: "Add the numbers."',
    # The untrained model repeats the line's end, so its answers have this stop.
    "local_lines": (HEAD + WRITES_ANSWERS).replace("Question:", "\\n\\n"),
    "local_texts": HEAD + SCORES_TEXTS,
}
GROUPS = {
    "local_both": "task: [local_answers, local_choices]\naggregate_metric_list: [{metric: acc}]",
    "local_twice": "task: [local_choices, local_more]\naggregate_metric_list: [{metric: acc}]",
    "local_list": "task: [local_choices, local_more]",
}


def write_tasks(folder: Path) -> None:
    """Write all tasks and groups to the folder `tasks` in `folder`, and their questions there."""
    (folder / "tasks").mkdir()
    for name, text in TASKS.items() | {("local_more", TASKS["local_choices"])}:
        (folder / "tasks" / f"{name}.yaml").write_text(f"task: {name}\n{text}\n")
    for name, text in GROUPS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(f"group: {name}\n{text}\n")
    for name, count in (("questions", QUESTIONS), ("examples", EXAMPLES)):
        lines = [json.dumps(_question(i)) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


def _question(i: int) -> dict[str, Any]:
    return {"question": f"{i} + 1 =", "choices": [str(i + 1), str(i + 2)], "answer": 0}


def own_model(*, seq_len: int = 256, softcap: float | None = None) -> tuple[Decoder, Tokenizer]:
    """Return a tiny model with a tokenizer that knows Pion's own chat format."""
    tokenizer = train_bpe(["Question: 1 + 1 =\nAnswer: 2", "<|user|>\n<|assistant|>\n"], 300)
    torch.manual_seed(0)
    config = tiny_config(vocab_size=tokenizer.vocab_size, seq_len=seq_len, softcap=softcap)
    return Decoder(config), tokenizer
