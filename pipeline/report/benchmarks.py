"""What questions of other people's benchmarks say of a model: CORE and lm-evaluation-harness.

CORE is explained for readers who have never heard of it. The metrics of lm-evaluation-harness are
its own, so each may be anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.console.formats import counted, measured, printable
from pipeline.report.blocks import (
    Block,
    Table,
    is_finite,
    number_with_error,
    share_with_error,
)
from pipeline.report.results import TRAINED

# A result so many standard errors from guessing, or fewer, is not told from guessing.
ERRORS_OF_CHANCE = 2.0
# What the tasks of CORE ask.
ASKS = {
    "hellaswag_zeroshot": "how an everyday scene goes on; no example before it",
    "jeopardy": "answers of a quiz show, word for word",
    "bigbench_qa_wikidata": "facts about people and places, word for word",
    "arc_easy": "easy school questions on science",
    "arc_challenge": "hard school questions on science",
    "copa": "which cause or effect is the likelier one",
    "commonsense_qa": "everyday knowledge, by letter",
    "piqa": "how to do things with household objects",
    "openbook_qa": "elementary science",
    "lambada_openai": "the last word of a passage",
    "hellaswag": "how an everyday scene goes on",
    "winograd": "whom a pronoun stands for",
    "winogrande": "whom a pronoun stands for, harder",
    "bigbench_dyck_languages": "which brackets close a sequence",
    "agi_eval_lsat_ar": "puzzles of a law school exam, by letter",
    "bigbench_cs_algorithms": "simple algorithms, step by step",
    "bigbench_operators": "made-up arithmetic operators",
    "bigbench_repeat_copy_logic": "to repeat words as told",
    "squad": "an answer from a passage, word for word",
    "coqa": "a conversation about a passage, word for word",
    "boolq": "yes or no, from a passage",
    "bigbench_language_identification": "which language a sentence is in, by letter",
}
COLUMNS = (
    "task, and what it asks",
    "right",
    "by guessing",
    "from guessing (0) to all right (1)",
    "note",
)
# Twenty trainings of one recipe that differ in their seed: karpathy/nanochat, issue 807.
SEED = (
    "Two trainings with other seeds differ in CORE by about 0.009, so below 0.018, one run each "
    "says nothing about a recipe. Bits per byte resolve far smaller differences."
)
# The key of a task's result with how the model was asked. All numbers next to it are metrics.
# Results of 0.1.0 don't have it.
ASKED = "asked"
ASKED_COLUMNS = (
    *("task", "version", "stop texts", "questions"),
    *("longest answer", "cut off", "cropped"),
)


def core_blocks(results: Mapping[str, Any], *, brief: bool) -> list[Block]:
    """Return the sentences and the tables of a run's models; empty if CORE was not measured.

    `brief` leaves out the tables of tasks.
    """
    cores = {
        title: core
        for name, title in TRAINED.items()
        if (core := results.get(name, {}).get("core"))
    }
    blocks: list[Block] = [
        f"The {title} model answers questions of other people's benchmarks: {core_in_words(core)}."
        for title, core in cores.items()
    ]
    if any(not core["not_core"] and is_finite(core["value"]) for core in cores.values()):
        blocks.append(SEED)
    for title, core in [] if brief else cores.items():
        blocks += [
            f"What the {title} model answers to the questions of CORE:",
            Table(COLUMNS, _rows(core)),
        ]
    return blocks


def core_in_words(core: Mapping[str, Any]) -> str:
    """Return the result in one or two sentences, with its rule, baselines and bundle."""
    limit, cropped = core["limit"], len(core["cropped_tasks"])
    each = "all items" if limit is None else f"{counted(limit, 'item')} per task"
    details = [f"rule {core['rule']}, baselines v1", each, f"bundle {core['bundle_digest'][:12]}"]
    if core["dtype"] != "float32":
        details.append(core["dtype"])
    if cropped:
        details.append(f"context {core['context']:,}: {counted(cropped, 'task')} cropped")
    if not is_finite(core["value"]):
        return f"{core['name']}: not finite ({'; '.join(details)})"
    text = (
        f"{core_in_brief(core)} ({'; '.join(details)}). With baselines v2: "
        f"{number_with_error(core['value_v2'], core['sem_v2'], 4)}. 0 is guessing, 1 is every "
        "answer right"
    )
    if _within_chance(core["value"], core["sem"]):
        text = f"{text}. At chance: it can't be told from guessing"
    not_core = core["not_core"]
    return f"{text}. Not CORE: {'; '.join(not_core)}" if not_core else text


def core_in_brief(core: Mapping[str, Any]) -> str:
    """Return the number alone, as `CORE 0.0213 ± 0.0041`."""
    value = number_with_error(core["value"], core["sem"], 4)
    return f"{core['name']} {'not finite' if value == '–' else value}"


def task_in_words(task: Mapping[str, Any]) -> str:
    """Return a line about a task: how many answers are right, and what to know about them."""
    amount = f"{task['items']:,} of {counted(task['of_items'], 'item')}"
    if task["not_finite"]:
        odd = counted(task["not_finite"], "item")
        return (
            f"{task['label']}: not finite: the model's logits of {odd} are not numbers ({amount})"
        )
    guessing = f"guessing {task['baseline']:.1%}, "
    if _at_chance(task):
        guessing = f"at chance, {task['baseline']:.1%}; "
    parts = [
        f"{task['label']}: {share_with_error(task['accuracy'], task['sem'])} right "
        f"({guessing}{amount}), centred {number_with_error(task['centred'], task['centred_sem'])}"
    ]
    return "; ".join([*parts, *_notes(task)])


def _rows(core: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for task in core["tasks"]:
        asks = ASKS.get(task["label"], task["task_type"].replace("_", " "))
        name = f"{task['label']}: {asks}"
        if task["not_finite"]:
            rows.append((name, "–", "–", "–", "the model's logits are not numbers"))
            continue
        rows.append(
            (
                name,
                share_with_error(task["accuracy"], task["sem"]),
                f"{100 * task['baseline']:.1f} %",
                number_with_error(task["centred"], task["centred_sem"]),
                "; ".join(["at chance"] * _at_chance(task) + _notes(task)),
            )
        )
    return rows


def _notes(task: Mapping[str, Any]) -> list[str]:
    notes = []
    if task["cropped"]:
        notes.append(f"{task['cropped']:.0%} of rows cropped")
    if task["commonest"] is not None and task["commonest_place"] is not None:
        notes.append(f"choice {task['commonest_place'] + 1} in {task['commonest']:.0%}")
    counts = {
        "did not fit": task["unscored"],
        "odd": task["odd_items"],
        "with a joined token": task["joined_tokens"],
        "tied": task["ties"],
    }
    return notes + [f"{count:,} {label}" for label, count in counts.items() if count]


def _at_chance(task: Mapping[str, Any]) -> bool:
    right = task["accuracy"]
    return _within_chance(None if right is None else right - task["baseline"], task["sem"])


def _within_chance(value: float | None, sem: float | None) -> bool:
    return is_finite(value) and is_finite(sem) and abs(value) <= ERRORS_OF_CHANCE * sem


# ---------------------------------------------------------------- lm-evaluation-harness


def lm_eval_blocks(results: Mapping[str, Any], *, code: str) -> list[Block]:
    """Return what lm-evaluation-harness measured, and how it asked; `code` formats stop texts."""
    tasks: Mapping[str, Mapping[str, Any]] = results.get("lm_eval", {})
    forms_of_tasks = {task: metrics[ASKED] for task, metrics in tasks.items() if metrics.get(ASKED)}
    blocks: list[Block] = []
    if rows := [row for task, metrics in tasks.items() for row in _metric_rows(task, metrics)]:
        blocks += ["lm-evaluation-harness:", Table(("task", "metric", "value"), rows, 2)]
    if forms_of_tasks:
        forms = [_asked_row(task, form, code) for task, form in forms_of_tasks.items()]
        blocks += [_asked_in_words(list(forms_of_tasks.values())), Table(ASKED_COLUMNS, forms, 3)]
    return blocks


def _metric_rows(task: str, metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (task, metric, value) of each metric; of a skipped task, the reason."""
    if "skipped" in metrics:
        return [(task, "skipped", metrics["skipped"])]
    rows = []
    for name, value in metrics.items():
        metric, comma, filter_name = name.partition(",")
        # The error of `acc,none` is `acc_stderr,none`.
        error = metrics.get(f"{metric}_stderr{comma}{filter_name}")
        if isinstance(value, int | float) and "_stderr" not in name and name != ASKED:
            known_error = error if isinstance(error, int | float) else None
            shown = f"{task}{_form(metrics.get(ASKED, {}))}"
            rows.append((shown, name.removesuffix(",none"), measured(value, known_error)))
    return rows


def _asked_row(task: str, asked: Mapping[str, Any], code: str) -> tuple[str, ...]:
    """Return how the model was asked a task, as ASKED_COLUMNS."""
    return (
        task,
        _text(asked.get("version")),
        _stops(asked, code),
        _questions(asked),
        "–" if "max_gen_toks" not in asked else f"{asked['max_gen_toks']:,}",
        share_with_error(asked.get("cut_off"), None),
        share_with_error(asked.get("cropped"), None),
    )


def _asked_in_words(forms: Sequence[Mapping[str, Any]]) -> str:
    versions, seeds = (
        ", ".join(sorted({_text(asked.get(name)) for asked in forms}))
        for name in ("lm_eval", "fewshot_seed")
    )
    return (
        f"lm-evaluation-harness {versions} asked as follows. It drew the examples with seed "
        f"{seeds}. Cut off are answers that reached the longest length, in tokens, without an end; "
        "cropped are prompts whose beginning did not fit into the model's context."
    )


def _form(asked: Mapping[str, Any]) -> str:
    """Return ` (chat, 5 turns)` or ` (text, 5 shots)`; empty if the form is not known."""
    form, shots = asked.get("form"), asked.get("shots")
    if form is None or not shots:
        return "" if form is None else f" ({form})"
    return f" ({form}, {counted(shots, 'turn' if form == 'chat' else 'shot')})"


def _questions(asked: Mapping[str, Any]) -> str:
    if "questions" not in asked or "of" not in asked:
        return "–"
    questions, of = asked["questions"], asked["of"]
    return f"{questions:,}" if questions == of else f"{questions:,} of {of:,}"


def _stops(asked: Mapping[str, Any], code: str) -> str:
    quoted = (json.dumps(printable(text), ensure_ascii=False) for text in asked.get("until", []))
    return ", ".join(code.format(text.replace("`", "'")) for text in quoted) or "–"


def _text(value: str | float | None) -> str:
    return "–" if value is None else printable(str(value))
