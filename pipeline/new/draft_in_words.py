"""A proposed job in words: each choice with its reason, and what the person should know."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.console.formats import short_amount
from pipeline.new import job_text as texts
from pipeline.new.base import NONE, LookedUp
from pipeline.new.draft import BUILT_IN, Draft
from pipeline.new.proposal import TOKENS_PER_PARAMETER, FineTuning, Pretraining

# With fewer tokens for each parameter, a note says so.
LEAST_RATIO = 5
# If less of the text is used, a note says so.
LEAST_USED = 0.5
# With fewer conversations, a note says so.
FEW_CONVERSATIONS = 20


def in_lines(draft: Draft) -> Iterator[str]:
    """Yield each choice with its value and its reason."""
    p, stage, sft = draft.proposal, draft.proposal.pretraining, draft.proposal.fine_tuning
    rows: list[tuple[str, str, str]] = []
    if p.base is not None:
        rows.append(("start", p.base, "its size, vocabulary and context stay as they are"))
    if stage is not None and stage.preset is not None:
        rows.append(("size", stage.preset, texts.model_reason(stage)))
        rows.append(("vocabulary", f"{stage.vocab_size:,}", texts.vocabulary_reason(stage)))
    if stage is not None:
        rows += [
            ("rows", f"{stage.seq_len:,} tokens", stage.why_rows),
            ("steps", f"{stage.steps:,}", texts.steps_reason(stage)),
            ("batch", f"{stage.global_batch}", texts.batch_reason(stage)),
            ("rate", f"{stage.lr:g}", texts.LOW_RATE)
            if stage.lr is not None
            else ("recipe", "pion2", texts.RECIPE),
            ("held out", f"{stage.held_out:.3g}", texts.HELD_OUT),
        ]
    rows += list(_of_chats(sft)) if sft is not None else []
    rows.append(("price", "", draft.price))
    wide = max(len(value) for _, value, _ in rows)
    for name, value, reason in rows:
        yield f"{name:<14} {value:<{wide}}  {reason}" if value else f"{name:<14} {reason}"


def _of_chats(sft: FineTuning) -> Iterator[tuple[str, str, str]]:
    yield "chat rows", f"{sft.seq_len:,} tokens", sft.why_rows
    yield "passes", f"{sft.epochs:g}", texts.epochs_reason(sft)
    yield "chat batch", f"{sft.global_batch}", texts.CHAT_BATCH
    yield "chats held out", f"{sft.held_out:.3g}", texts.CHAT_HELD_OUT
    if sft.lora:
        yield "LoRA", "yes", "the base is large; it stays as it is, and small additions are trained"


def notes(draft: Draft, start: str | None) -> Iterator[str]:
    """Yield what the person should know; `start` is what `--from` says."""
    p, conversations = draft.proposal, draft.amount.conversations
    if draft.base is not None:
        yield from _of_base(draft, draft.base, start)
    elif BUILT_IN in p.texts:
        yield (
            "without a model to start from, it is pretrained on the documentation that comes with "
            "Python first. That shows that all works; for a model worth talking to, name one: "
            "--from MODEL"
        )
    elif p.pretraining is not None:
        yield from _too_little(p.pretraining)
    if p.pretraining is not None and p.pretraining.epochs < LEAST_USED:
        yield (
            f"training uses {p.pretraining.epochs:.1%} of the text, but all of it is prepared "
            "first. Give a part of it, and preparing takes less time and room"
        )
    if 0 < conversations < FEW_CONVERSATIONS:
        yield f"{conversations} conversations are very few: expect a change of tone at most"


def _of_base(draft: Draft, base: LookedUp, start: str | None) -> Iterator[str]:
    if base.base is None:
        yield (
            f"{base.source} can't be looked up now ({base.why}), so the job was not checked, and "
            "the examples are shown without its chat template. `pion check` looks again"
        )
    elif draft.proposal.chats and not base.has_template:
        yield (
            f"{base.source} has no chat template, so Pion's own is used: plain text with "
            "<|user|> and <|assistant|>"
        )
    if start is None and draft.proposal.texts:
        yield (
            f"{short_amount(draft.amount.text_bytes / 4)} tokens of text are too few to pretrain a "
            f"model on, so it starts from {base.source}. --from {NONE} starts from random weights"
        )
    elif start is None:
        yield (
            f"conversations need a model that can talk, so it starts from {base.source}. --from "
            "MODEL names another one"
        )


def _too_little(stage: Pretraining) -> Iterator[str]:
    if stage.parameters is None or stage.tokens >= LEAST_RATIO * stage.parameters:
        return
    yield (
        f"so many tokens suit a model of {short_amount(stage.tokens / TOKENS_PER_PARAMETER)} "
        f"parameters, and {stage.preset} has {short_amount(stage.parameters)}: it will learn words "
        "more than facts. A trained model learns more from them: --from MODEL"
    )
