"""What lm-eval asks, and what is kept of its results: metrics, how it asked, scores by question."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Real
from typing import Any, Literal

from pion.evaluation.item_scores import item_scores, pack

Form = Literal["chat", "text"]

FEWSHOT_SEED = 1234
# Of which questions a task asks, if it does not ask all.
SAMPLE_SEED = 1234
# The stop texts that are kept, and how long they may be.
MOST_STOPS, LONGEST_STOP = 16, 60


@dataclass
class Counts:
    """What happened to prompts and answers, which lm-eval does not say.

    Attributes:
        prompts: all prompts, one for each choice of a multiple-choice question.
        cropped: prompts whose beginning was cut off, because the model's context is too short.
        answers: all answers that the model wrote.
        cut_off: answers that reached the largest length without an end.
        longest: this length, in tokens; 0 if the model wrote no answer.
    """

    prompts: int = 0
    cropped: int = 0
    answers: int = 0
    cut_off: int = 0
    longest: int = 0


def drawn(count: int, limit: int | None) -> list[int] | None:
    """Return the places of `limit` of `count` questions, in order; None if all are asked.

    Every run gets the same. A smaller sample is part of a larger one.
    """
    if limit is None or limit >= count:
        return None
    places = list(range(count))
    random.Random(SAMPLE_SEED).shuffle(places)
    return sorted(places[:limit])


def metrics_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers among lm-eval's results of one task, by name."""
    return {
        name.removesuffix(",none"): value
        for name, value in result.items()
        if isinstance(value, int | float) and name != "sample_len"
    }


def asked_of(
    found: Mapping[str, Any], task: str, form: Form, counts: Counts, *, drawn: bool
) -> dict[str, Any]:
    """Return how the model was asked `task`, a task or a group of tasks, and which shares of the
    prompts were cropped and of the answers cut off.

    `found` is what `simple_evaluate` returns. `drawn` says whether only some questions were asked.
    """
    questions = [found["n-samples"][leaf] for leaf in found["configs"]]
    shots = {found["n-shot"].get(leaf) for leaf in found["configs"]}
    of_task = found["versions"].get(task)
    record: dict[str, Any] = {
        "form": form,
        "shots": shots.pop() if len(shots) == 1 else None,
        "version": None if of_task is None else str(of_task),
        "lm_eval": version("lm_eval"),
        "fewshot_seed": FEWSHOT_SEED,
        "questions": sum(count["effective"] for count in questions),
        "of": sum(count["original"] for count in questions),
    }
    if drawn:
        record["sample_seed"] = SAMPLE_SEED
    if counts.prompts:
        record["cropped"] = counts.cropped / counts.prompts
    if counts.longest:
        record |= {
            "until": _stops(found["configs"].values()),
            "max_gen_toks": counts.longest,
            "cut_off": counts.cut_off / max(1, counts.answers),
        }
    return record


def items_of(found: Mapping[str, Any], form: Form, longest: int) -> dict[str, Any]:
    """Return the score of each question by task and metric, as `item_scores.pack` does. `longest`
    is the largest number of tokens in an answer; 0 if no answer was written.

    The `key` of each says what two models have in common that were asked the same way. Metrics that
    are no number by question (perplexity) are left out.
    """
    hashes: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    rules: dict[str, str] = {}
    for leaf, samples in found["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                value = sample[metric]
                if not isinstance(value, Real):  # numpy's are Real, too
                    continue
                name = f"lm_eval.{leaf} {metric},{sample['filter']}".removesuffix(",none")
                hashes.setdefault(name, []).append(sample["doc_hash"] + sample["target_hash"])
                scores.setdefault(name, []).append(float(value))
                rules[name] = _rule(found, leaf, form, longest)
    return {
        name: {
            "key": {
                "rule": rules[name],
                "questions": hashlib.sha256("\n".join(hashes[name]).encode()).hexdigest(),
            },
            **pack(item_scores(task_scores)),
        }
        for name, task_scores in scores.items()
    }


def _rule(found: Mapping[str, Any], leaf: str, form: Form, longest: int) -> str:
    counts = found["n-samples"][leaf]
    written = f", answers of at most {longest} tokens" if longest else ""
    return (
        f"lm-eval {version('lm_eval')}, {leaf} version {found['versions'].get(leaf)}, {form}, "
        f"{found['n-shot'].get(leaf)} shots (seed {FEWSHOT_SEED}), {counts['effective']} of "
        f"{counts['original']} questions (seed {SAMPLE_SEED}){written}"
    )


def _stops(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    stops: list[str] = []
    for config in configs:
        until = (config.get("generation_kwargs") or {}).get("until") or []
        named: Sequence[Any] = [until] if isinstance(until, str) else until
        stops += [str(text)[:LONGEST_STOP] for text in named]
    return list(dict.fromkeys(stops))[:MOST_STOPS]
