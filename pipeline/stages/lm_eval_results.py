"""What lm-eval asks, and what is kept of its results: metrics, how it asked, scores by question."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from pion.evaluation.item_scores import item_scores, pack

Form = Literal["chat", "text"]

FEWSHOT_SEED = 1234
# Of which questions a task asks, if it does not ask all.
SAMPLE_SEED = 1234
# The key of a task's result with how the model was asked. All numbers next to it are metrics.
ASKED = "asked"
# The stop texts that are kept, and how long they may be.
MOST_STOPS, LONGEST_STOP = 16, 60


@dataclass(frozen=True)
class Asked:
    """How a model was asked, as far as lm-eval's results don't say it.

    Attributes:
        form: in its chat format, or as plain text.
        lm_eval: the version of lm-eval.
        prompts: of how many prompts `cropped` is the share.
        cropped: the share of prompts whose beginning did not fit into the model's context.
        longest: the largest number of tokens in an answer; 0 if no answer was written.
        cut_off: the share of answers that reached this length without an end.
    """

    form: Form
    lm_eval: str
    prompts: int
    cropped: float
    longest: int
    cut_off: float


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


def asked_of(found: Mapping[str, Any], task: str, asked: Asked, drawn: bool) -> dict[str, Any]:
    """Return how the model was asked `task`, a task or a group of tasks.

    `found` is what `simple_evaluate` returns. `drawn` says whether only some questions were asked.
    """
    counts = [found["n-samples"][leaf] for leaf in found["configs"]]
    shots = {found["n-shot"].get(leaf) for leaf in found["configs"]}
    version = found["versions"].get(task)
    kept: dict[str, Any] = {
        "form": asked.form,
        "shots": shots.pop() if len(shots) == 1 else None,
        "version": None if version is None else str(version),
        "lm_eval": asked.lm_eval,
        "fewshot_seed": FEWSHOT_SEED,
        "questions": sum(count["effective"] for count in counts),
        "of": sum(count["original"] for count in counts),
    }
    if drawn:
        kept["sample_seed"] = SAMPLE_SEED
    if asked.prompts:
        kept["cropped"] = asked.cropped
    if asked.longest:
        kept |= {
            "until": _stops(found["configs"].values()),
            "max_gen_toks": asked.longest,
            "cut_off": asked.cut_off,
        }
    return kept


def items_of(found: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """Return the score of each question by task and metric, as `item_scores.pack` does.

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
                rules[name] = _rule(found, leaf, asked)
    return {
        name: {
            "key": {"rule": rules[name], "questions": _digest(hashes[name])},
            **pack(item_scores(own)),
        }
        for name, own in scores.items()
    }


def _digest(hashes: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _rule(found: Mapping[str, Any], leaf: str, asked: Asked) -> str:
    counts = found["n-samples"][leaf]
    longest = f", answers of at most {asked.longest} tokens" if asked.longest else ""
    return (
        f"lm-eval {asked.lm_eval}, {leaf} version {found['versions'].get(leaf)}, {asked.form}, "
        f"{found['n-shot'].get(leaf)} shots (seed {FEWSHOT_SEED}), {counts['effective']} of "
        f"{counts['original']} questions (seed {SAMPLE_SEED}){longest}"
    )


def _stops(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    stops: list[str] = []
    for config in configs:
        until = (config.get("generation_kwargs") or {}).get("until") or []
        named: Sequence[Any] = [until] if isinstance(until, str) else until
        stops += [str(text)[:LONGEST_STOP] for text in named]
    return list(dict.fromkeys(stops))[:MOST_STOPS]
