"""Compare learning from rewards with TRL's GRPOTrainer and the generate of transformers.

    uv run --group trl python -m benchmarks.rewarding MODEL

MODEL is the demo before it learns from rewards, so its answers have an end:

    uv run pion run jobs/demo-reinforce.yaml --until sft
    uv run pion export demo-reinforce MODEL --stage sft

Both sides are in fp32 on one thread. A step has 16 questions about Python's standard library, 8
answers of at most 40 tokens to each, and the demo's reward. TRL's own loop runs, and after each of
its steps Pion takes one on the same questions. Sampling alone is compared, too. Writes
benchmarks/results/rewarding.json.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import pion
from benchmarks.__main__ import circumstances, printed
from benchmarks.comparison import Comparison, alternate, at_least, compare, heading, speed_of
from pion.data.chat.chat_format import ChatFormat
from pion.data.documents.python_qa import dialogues
from pion.data.tokens.tokenizer import Tokenizer
from pion.formats.load import load_decoder
from pion.generation.rollouts import Prompt, Rollout, RolloutSettings, Sampler
from pion.train.reinforce import Reinforcement
from pion.train.rollout_feed import Judged, Prompts
from pion.train.trainer import ComputePlan, Trainer, TrainSettings

RESULTS = Path(__file__).parent / "results" / "rewarding.json"
ROUNDS, WARMUP = 7, 1
BATCH, ANSWERS, MAX_TOKENS, ROW = 16, 8, 40, 256
LR = 1e-4
REWARD = re.compile(r"(\S+ ){2,5}\S+\.")


class Questions:
    """The questions of all steps, and what both sides need to ask a model in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
        chat = ChatFormat(folder / "tokenizer.json", self.tokenizer)
        count = BATCH * (ROUNDS + WARMUP)
        every = [dialogue.turns[:-1] for dialogue in dialogues()]
        self.messages = [
            [{"role": turn.role, "content": turn.text} for turn in turns]
            for turns in islice(every, 0, None, len(every) // count)
        ][:count]
        self.ids = [list(chat.prompt_ids(messages)) for messages in self.messages]
        self.stops = frozenset(chat.stop_ids)
        self.longest = max(map(len, self.ids))

    def of(self, step: int) -> list[list[int]]:
        """Return the ids of the questions of a step."""
        return self.ids[step * BATCH : (step + 1) * BATCH]

    def reward(self, text: str) -> float:
        """Return the demo's reward of an answer that has an end."""
        return float(REWARD.fullmatch(text.strip()) is not None)

    def judged(self, rows: Sequence[int], groups: Sequence[Sequence[Rollout]]) -> Judged:
        """Judge answers as a stage does: without an end they get 0."""
        rewards = [
            [a.finished * self.reward(self.tokenizer.decode(a.ids[:-1])) for a in group]
            for group in groups
        ]
        return Judged(torch.tensor(rewards, dtype=torch.float64), {})


def run(folder: Path) -> Iterator[Comparison]:
    """Yield the comparisons of sampling, and the one of a step."""
    asked = Questions(folder)
    details = {"tokens_of_a_prompt": round(sum(map(len, asked.ids)) / len(asked.ids), 1)}
    found = sampled(asked)
    for name, other in (("transformers", "generate"), ("generate_batch", "generate_batch")):
        target = at_least(1.0) if name == "generate_batch" else None
        what = ("sampling answers", other, "tokens/s")
        yield compare(what, found["ours"], found[name], target, details)
    ours, theirs = steps_by_turns(asked)
    rate, rate_of_trl = ([1 / seconds for seconds in side[WARMUP:]] for side in (ours, theirs))
    yield compare(
        ("a step with rewards", "TRL", "steps/s"), rate, rate_of_trl, at_least(3.0), details
    )


def sampled(asked: Questions) -> dict[str, list[float]]:
    """Return the tokens per second of Pion's rollouts and of two others, by turns."""
    from transformers import AutoModelForCausalLM

    model = load_decoder(asked.folder)
    settings = RolloutSettings(ANSWERS, MAX_TOKENS, asked.stops, asked.tokenizer.vocab_size, 1)
    sampler = Sampler(model, settings, rows=BATCH * ANSWERS, longest=asked.longest)
    theirs = AutoModelForCausalLM.from_pretrained(asked.folder, dtype="float32").eval()

    def rollouts(step: int) -> float:
        prompts = [Prompt(step * BATCH + n, ids) for n, ids in enumerate(asked.of(step))]
        return sum(len(answer.ids) for group in sampler.sample(prompts) for answer in group)

    def batch(step: int) -> float:
        prompts = [ids for ids in asked.of(step) for _ in range(ANSWERS)]
        drawn = pion.generate_batch(
            model,
            prompts,
            stop_ids=asked.stops,
            vocab_size=asked.tokenizer.vocab_size,
            max_tokens=MAX_TOKENS,
            rows=len(prompts),
            seed=step,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
        )
        return float(len(list(drawn)))  # the end of a text counts, as in a rollout

    def generate(step: int) -> float:
        prompts = [ids for ids in asked.of(step) for _ in range(ANSWERS)]
        width = max(map(len, prompts))
        padded = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
        with torch.no_grad():
            found = theirs.generate(
                input_ids=padded,
                attention_mask=mask,
                max_new_tokens=MAX_TOKENS,
                eos_token_id=sorted(asked.stops),
                pad_token_id=0,
                disable_compile=True,
                **{"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
            )
        ended = torch.isin(found[:, width:], torch.tensor(sorted(asked.stops))).int()
        return float((ended.cumsum(1) - ended == 0).sum())  # up to the first stop id of each

    sides = {"ours": rollouts, "transformers": generate, "generate_batch": batch}
    return alternate({name: speed_of(work) for name, work in sides.items()}, ROUNDS, WARMUP)


def steps_by_turns(asked: Questions) -> tuple[list[float], list[float]]:
    """Return the seconds of each step of Pion and of TRL: by turns, on the same questions."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    ours: list[float] = []
    theirs: list[float] = []
    count, begun = ROUNDS + WARMUP, [0.0]
    settings = TrainSettings(
        steps=count,
        global_batch=BATCH,
        lr=LR,
        schedule="constant",
        weight_decay=0.0,
        learning=Reinforcement(ANSWERS, MAX_TOKENS, "std"),
    )
    sizes = (ROW, asked.longest, asked.stops, asked.tokenizer.vocab_size)
    prompts = Prompts(asked.ids.__getitem__, asked.judged, *sizes)
    plan = ComputePlan(micro_batch=8, threads=1, rollout_rows=BATCH * ANSWERS)
    trainer = Trainer(load_decoder(asked.folder), prompts, settings, plan)

    class ByTurns(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            begun[0] = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ended = time.perf_counter()
            trainer.train_step()
            theirs.append(ended - begun[0])
            begun[0] = time.perf_counter()
            ours.append(begun[0] - ended)

    def rewards(completions: list[Any], **kwargs: Any) -> list[float]:
        return [asked.reward(completion[0]["content"]) for completion in completions]

    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder,
            max_steps=count,
            per_device_train_batch_size=BATCH * ANSWERS,
            num_generations=ANSWERS,
            max_completion_length=MAX_TOKENS,
            learning_rate=LR,
            **{"steps_per_generation": 1, "num_iterations": 1, "loss_type": "dapo", "beta": 0.0},
            **{"lr_scheduler_type": "constant", "weight_decay": 0.0, "adam_beta2": 0.95},
            **{"temperature": 1.0, "gradient_checkpointing": False, "bf16": False, "use_cpu": True},
            **{"report_to": "none", "save_strategy": "no", "disable_tqdm": True},
            shuffle_dataset=False,
        )
        grpo = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(asked.folder, dtype="float32"),
            reward_funcs=rewards,
            args=args,
            train_dataset=Dataset.from_list([{"prompt": one} for one in asked.messages]),
            processing_class=AutoTokenizer.from_pretrained(asked.folder, padding_side="left"),
            callbacks=[ByTurns()],
        )
        torch.set_num_threads(1)
        grpo.train()
    trainer.close()
    return ours, theirs


def main() -> None:
    """Measure, print the table, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="the demo's model after sft")
    torch.set_num_threads(1)
    conditions, start = circumstances() | {"trl": version("trl")}, time.perf_counter()
    print(heading(), flush=True)
    found = [one.to_dict() for one in printed(run(parser.parse_args().model))]
    conditions["seconds"] = round(time.perf_counter() - start)
    written = json.dumps({**conditions, "comparisons": found}, indent=1, ensure_ascii=False)
    RESULTS.write_text(written + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
