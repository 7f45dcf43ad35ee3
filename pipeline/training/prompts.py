"""What a stage of rewards learns on: the prompts of its data, and who judges the answers."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pion.errors import BadInput, PionError
from pion.rewards.answered import Answered
from pion.rewards.judge import Judge
from pipeline.console.messages import Note
from pipeline.data.judge import judge_of, require_deterministic
from pipeline.data.prompt_rows import PromptRows
from pipeline.machine.kill_points import mark
from pipeline.training.reward_advice import ALL_RIGHT, ALL_WRONG

if TYPE_CHECKING:
    from pion.data.chat.chat_format import ChatFormat
    from pion.data.stream import RowStream
    from pion.generation.rollouts import Rollout
    from pion.train.rollout_feed import Judged, Prompts
    from pion.train.trainer import Trainer
    from pipeline.data.prepared import PreparedData
    from pipeline.job import Job
    from pipeline.training.context import TrainingContext
    from pipeline.training.stage_data import StageData

# Of the answers that are judged together: beyond this share of errors, the function is broken.
MOST_ERRORS = 0.01
# So many prompts are sampled before the first step.
FIRST_PROMPTS = 64


@contextmanager
def open_prompts(
    job: Job, data: PreparedData, chat_format: ChatFormat
) -> Iterator[Callable[[str, RowStream], Prompts]]:
    """Give what returns the prompts of a split, by its name and its rows.

    Raises BadInput for a function of rewards that can't be used.
    """
    with closing(judge_of(job)) as judge:
        yield partial(_prompts, job, data, chat_format, judge)


def _prompts(
    job: Job,
    data: PreparedData,
    chat_format: ChatFormat,
    judge: Judge,
    split: str,
    stream: RowStream,
) -> Prompts:
    from pion.train.rollout_feed import Prompts

    assert job.reinforce is not None
    rows = PromptRows.of(data, stream, split)
    return Prompts(
        ids=rows.ids,
        judge=_Judging(job, judge, rows, chat_format).judged,
        seq_len=job.seq_len("reinforce"),
        longest=rows.longest,
        stop_ids=frozenset(chat_format.stop_ids),
        vocab_size=chat_format.tokenizer.vocab_size,
        pass_at=job.reinforce.pass_at,
        seed=job.seed,
        held_out=split == "held_out",
    )


@dataclass
class _Judging:
    """Judges answers to the prompts of a split. `known` says whether the first ones were judged."""

    job: Job
    judge: Judge
    rows: PromptRows
    chat_format: ChatFormat
    known: bool = False

    def judged(self, numbers: Sequence[int], groups: Sequence[Sequence[Rollout]]) -> Judged:
        """Judge the answers to the prompts of rows.

        Raises PionError if the judging often fails, and BadInput if it is not deterministic.
        """
        import torch

        from pion.train.rollout_feed import Judged

        mark("rollout")
        asked = [self._answered(row, group) for row, group in zip(numbers, groups, strict=True)]
        if not self.known:
            require_deterministic(self.job, [one for group in asked for one in group])
            self.known = True
        found = self.judge.judge(asked)
        self._require_few_errors(sum(map(len, asked)))
        mark("reward")
        sums = {f"reward_{name}": sum(map(sum, values)) for name, values in found.by_name.items()}
        return Judged(torch.tensor(found.total, dtype=torch.float64), sums)

    def _answered(self, row: int, group: Sequence[Rollout]) -> list[Answered]:
        prompt, answer, record = self.rows.question(row)
        decode = self.chat_format.tokenizer.decode
        texts = [decode(one.ids[:-1] if one.finished else one.ids) for one in group]
        return [
            Answered(text, prompt, answer, record, one.finished, len(one.ids))
            for text, one in zip(texts, group, strict=True)
        ]

    def _require_few_errors(self, answers: int) -> None:
        errors = Counter[str]()
        for reward in self.judge.rewards.values():
            errors += reward.errors
            reward.errors.clear()
        if errors.total() > MOST_ERRORS * answers:
            ((message, _),) = errors.most_common(1)
            raise PionError(
                f"reinforce: {errors.total():,} of {answers:,} answers could not be judged: "
                f"{message}. Everything committed is safe. Correct the function, and run the same "
                "command again with --redo reinforce"
            )


def with_prompts(job: Job, data: StageData) -> StageData:
    """Return the data of a stage of rewards with its prompts, which are judged until it closes."""
    from pipeline.data.prepared import open_data

    closing_both = ExitStack()
    closing_both.callback(data.close)
    opened = open_prompts(job, open_data(data.folder), data.chat_format)
    prompts_of = closing_both.enter_context(opened)
    prompts = {
        split: prompts_of(split, stream)
        for split, stream in (("train", data.train), ("held_out", data.held_out))
    }
    return dataclasses.replace(data, prompts=prompts, close=closing_both.close)


def require_signal(context: TrainingContext, trainer: Trainer, prompts: Prompts) -> None:
    """Sample answers to the first prompts, and say what rewards they get, before anything is paid
    for. Every rank calls this.

    Raises BadInput if too few prompts get answers with different rewards.
    """
    section = context.job.reinforce
    assert section is not None
    rows = range(min(FIRST_PROMPTS, section.rows or FIRST_PROMPTS))
    started = time.monotonic()
    found = trainer.evaluate(prompts, rows, 1, 0, on_batch=context.watchdog.beat)
    seconds = time.monotonic() - started
    measured = found.measures
    words = (
        f"{section.answers} answers to each of {len(rows)} prompts: mean reward {-found.loss:.3f}, "
        f"{measured['pass']:.1%} are right, to {measured['pass_any']:.0%} of the prompts one is, "
        f"and {measured['unfinished']:.0%} have no end. To {measured['signal']:.0%} of the prompts "
        f"the rewards differ, and only these teach"
    )
    speed = f"{found.tokens / seconds:,.0f} tokens per second were sampled"
    context.report(Note(f"before the first step, {words}. {speed}"))
    if measured["signal"] < section.min_signal:
        raise BadInput(
            f"reinforce: nothing can be learned: of {words}. reinforce.min_signal is "
            f"{section.min_signal:g}. Everything committed is safe. "
            + (ALL_RIGHT if measured["pass"] > 0.5 else ALL_WRONG)
        )
