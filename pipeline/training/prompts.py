"""What a stage of rewards learns on: the prompts of its data, and who judges the answers."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pion.errors import BadInput
from pion.rewards.answered import Answered
from pion.rewards.judge import MOST_ERRORS, Judge
from pipeline.console.formats import duration
from pipeline.console.messages import Note, Say
from pipeline.data.judge import judge_of, require_judgeable
from pipeline.data.prompts import PromptRows
from pipeline.machine.kill_points import mark
from pipeline.training.reward_advice import ALL_RIGHT, ALL_WRONG

if TYPE_CHECKING:
    from pion.data.chat.chat_format import ChatFormat
    from pion.data.stream import RowStream
    from pion.evaluation.held_out import Evaluation
    from pion.generation.rollouts import Rollout
    from pion.model.decoder import Decoder
    from pion.train.rollout_feed import Judged, Prompts, RolloutFeed, Said
    from pion.train.trainer import Trainer
    from pipeline.data.prepared import PreparedData
    from pipeline.job import Job
    from pipeline.job.reinforce_section import Reinforce
    from pipeline.training.context import TrainingContext
    from pipeline.training.stage_data import StageData

# So many prompts are sampled before the first step.
FIRST_PROMPTS = 64
# A reward that takes more seconds for an answer is named.
SLOW = 0.5
# The most answers that are sampled together where nothing is trained.
SAMPLED = 256


@contextmanager
def open_prompts(
    job: Job,
    data: PreparedData,
    chat_format: ChatFormat,
    say: Say = lambda message: None,
    limited: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Callable[[str, RowStream], Prompts]]:
    """Give what returns the prompts of a split, by its name and its rows.

    `limited` is entered while answers are judged, which has limits of its own.

    Raises BadInput for a function of rewards that can't be used.
    """
    with closing(judge_of(job)) as judge:
        judging = partial(_Judging, job, judge, chat_format, say, limited, set())
        yield partial(_prompts, judging, data)


def _prompts(
    judging_of: Callable[[PromptRows], _Judging], data: PreparedData, split: str, stream: RowStream
) -> Prompts:
    from pion.train.rollout_feed import Prompts

    rows = PromptRows.of(data, stream, split)
    judging = judging_of(rows)
    job, chat_format = judging.job, judging.chat_format
    assert job.reinforce is not None
    return Prompts(
        ids=rows.ids,
        judge=judging.judged,
        seq_len=job.seq_len("reinforce"),
        longest=rows.longest,
        stop_ids=frozenset(chat_format.stop_ids),
        vocab_size=chat_format.tokenizer.vocab_size,
        pass_at=job.reinforce.pass_at,
        seed=job.seed,
        held_out=split == "held_out",
        said=lambda: judging.said,
    )


@contextmanager
def open_feed(
    job: Job, data: PreparedData, model: Decoder, split: str, stream: RowStream
) -> Iterator[tuple[RolloutFeed, Prompts]]:
    """Give what samples answers of a model that is not trained here, and the prompts of a split."""
    from pion.data.chat.chat_format import ChatFormat
    from pion.data.tokens.tokenizer import Tokenizer
    from pion.train.gradients import Ranks
    from pion.train.hardware import pick_dtype
    from pion.train.rollout_feed import RolloutFeed
    from pion.train.settings import ComputePlan, TrainSettings

    assert job.reinforce is not None
    device, path = model.embed.weight.device, data.tokenizer_path
    dtype = pick_dtype(job.hardware.dtype, device)
    plan = ComputePlan(str(device), dtype=dtype, rollout_rows=SAMPLED)
    settings = TrainSettings(steps=1, global_batch=1, lr=1.0, learning=job.reinforce.learning)
    with (
        closing(ChatFormat(path, Tokenizer.from_file(path))) as chat_format,
        open_prompts(job, data, chat_format) as prompts_of,
    ):
        prompts = prompts_of(split, stream)
        yield RolloutFeed(model, prompts, settings, plan, rank=0, ranks=Ranks(1)), prompts


@dataclass
class _Judging:
    """Judges answers to the prompts of a split. `told` has what was said once, `known` says whether
    the first answers were judged, and `said` has the last ones."""

    job: Job
    judge: Judge
    chat_format: ChatFormat
    say: Say
    limited: Callable[[], AbstractContextManager[None]]
    told: set[str]
    rows: PromptRows
    known: bool = False
    said: Sequence[Said] = ()

    def judged(self, numbers: Sequence[int], groups: Sequence[Sequence[Rollout]]) -> Judged:
        """Judge the answers to the prompts of rows.

        Raises BadInput if the judging often fails, or is not deterministic.
        """
        import torch

        from pion.train.rollout_feed import Judged, Said

        mark("rollout")
        asked = [self._answered(row, group) for row, group in zip(numbers, groups, strict=True)]
        with self.limited():  # by the limits of each reward
            found = self.judge.judge(asked)
        count = sum(map(len, asked))
        self._require_few_errors(count)
        self._tell(found.seconds, count)
        if not self.known:
            require_judgeable(self.job, [one for group in asked for one in group])
            self.known = True
        self.said = [
            Said(
                prompt
                if isinstance(prompt := group[0].prompt, str)
                else str(prompt[-1]["content"]),
                [*zip(total, (one.text for one in group))],
            )
            for group, total in zip(asked, found.total, strict=True)
        ]
        mark("reward")
        tensor = partial(torch.tensor, dtype=torch.float64)
        by_name = {f"reward_{name}": tensor(values) for name, values in found.by_name.items()}
        each = sum(found.seconds.values()) / max(1, count)
        by_name["judge_seconds"] = torch.full_like(tensor(found.total), each)
        return Judged(tensor(found.total), by_name)

    def _answered(self, row: int, group: Sequence[Rollout]) -> list[Answered]:
        prompt, answer, record, begun = self.rows.question(row)
        decode = self.chat_format.tokenizer.decode
        texts = [decode(one.ids[:-1] if one.finished else one.ids) for one in group]
        return [
            Answered(begun + text, prompt, answer, record, one.finished, len(one.ids), one.ids)
            for text, one in zip(texts, group, strict=True)
        ]

    def _tell(self, seconds: Mapping[str, float], answers: int) -> None:
        """Say once which reward is slow, and which can't judge some answers."""
        words = {}
        for name, took in seconds.items():
            if took > SLOW * answers:
                each = f"the reward `{name}` takes {duration(took / answers)} an answer"
                words[f"{name} slow"] = f"{each}, {duration(took)} for these {answers:,}"
            if unjudged := self.judge.rewards[name].unjudged:
                words[name] = (
                    f"the reward `{name}` gave 0 to {unjudged.total():,} of {answers:,} answers: "
                    f"{unjudged.most_common(1)[0][0]}"
                )
                unjudged.clear()
        for key in words.keys() - self.told:
            self.say(Note(words[key]))
        self.told |= words.keys()

    def _require_few_errors(self, answers: int) -> None:
        rewards = self.judge.rewards.values()
        errors = sum((reward.errors for reward in rewards), Counter[str]())
        for reward in rewards:
            reward.errors.clear()
        if errors.total() > MOST_ERRORS * answers:
            raise BadInput(
                f"reinforce: {errors.total():,} of {answers:,} answers could not be judged: "
                f"{errors.most_common(1)[0][0]}. No other answer was tried. Everything committed "
                "is safe. Correct the function or the records. If the stage has begun, add "
                "`--redo reinforce`"
            )


def with_prompts(context: TrainingContext, data: StageData) -> StageData:
    """Return the data of a stage of rewards with its prompts, which are judged until it closes."""
    from pipeline.data.prepared import open_data

    closing_both = ExitStack()
    closing_both.callback(data.close)
    prompts_of = closing_both.enter_context(
        open_prompts(
            context.job,
            open_data(data.folder),
            data.chat_format,
            context.report,
            partial(context.watchdog.paused, counted=True),
        )
    )
    prompts = {
        "train": prompts_of("train", data.train),
        "held_out": prompts_of("held_out", data.held_out),
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
    speed = found.tokens / (time.monotonic() - started)
    words = f"{signal_in_words(section, found)}. {speed:,.0f} tokens per second were sampled"
    context.report(Note(f"before the first step, {words}"))
    if (why := nothing_to_learn(section, found)) is not None:
        raise BadInput(why)


def signal_in_words(section: Reinforce, found: Evaluation) -> str:
    """Say which rewards the answers to prompts get."""
    measured = found.measures
    return (
        f"{section.answers} answers to each of {found.rows} prompts: mean reward "
        f"{-found.loss:.3f}, {measured['pass']:.1%} are right, to {measured['pass_any']:.0%} of "
        f"the prompts one is, and {measured['unfinished']:.0%} have no end. To "
        f"{measured['signal']:.0%} of the prompts the rewards differ, and only these teach"
    )


def nothing_to_learn(section: Reinforce, found: Evaluation) -> str | None:
    """Say why nothing can be learned from these answers, and what to do; None: something can."""
    if found.measures["signal"] >= section.min_signal:
        return None
    return (
        f"reinforce: nothing can be learned: of {signal_in_words(section, found)}. "
        f"reinforce.min_signal is {section.min_signal:g}. Everything committed is safe. "
        + (ALL_RIGHT if found.measures["pass"] > 0.5 else ALL_WRONG)
    )
