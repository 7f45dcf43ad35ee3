"""How long CORE takes, as an estimate: the tokens of its prompts at the speed of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

from pion.errors import BadInput
from pion.evaluation.core.bundle import Bundle, Task
from pipeline.console.formats import amount, counted, duration
from pipeline.job import Job
from pipeline.rent.plan.estimate import FORWARD, Estimate
from pipeline.stages.core import items_asked, read_core

# Of English text, as most tokenizers cut it.
CHARACTERS_OF_A_TOKEN = 4


def core_minutes(job: Job, estimates: Sequence[Estimate]) -> list[str]:
    """Return a note on the tokens and the time of CORE on the first of the GPUs that the job fits
    on; [] without CORE. A bundle that can't be read is a note, too."""
    if job.evaluate.core is None:
        return []
    try:
        bundle = read_core(job)
    except BadInput as error:
        return [f"evaluate.core would be refused: {error}"]
    assert bundle is not None
    tokens = core_tokens(bundle, items_asked(job), job.model_config_resolved().seq_len)
    models = len(job.train_stages)
    asked = "all" if job.evaluate.core.items == "all" else f"{job.evaluate.core.items:,}"
    what = (
        f"CORE asks {asked} items of each of {counted(len(bundle.tasks), 'task')}: about "
        f"{amount(tokens)} tokens for each of {counted(models, 'model')}"
    )
    known = [e for e in estimates if e.fits and e.tokens_per_second]
    if not known:
        return [what]
    best = known[0]
    assert best.tokens_per_second is not None
    seconds = models * tokens * best.offer.count / (FORWARD * best.tokens_per_second)
    return [
        f"{what}, {duration(seconds)} on one {best.offer.gpu} at {FORWARD} × its training "
        "tokens/s (an estimate; not in the hours above)"
    ]


def core_tokens(bundle: Bundle, limit: int | None, context: int) -> int:
    """Return about how many tokens a model reads, where each option is a separate row."""
    return round(sum(_tokens(task, limit, context) for task in bundle.tasks))


def _tokens(task: Task, limit: int | None, context: int) -> float:
    lengths = [max(len("".join(item.pair(i))) for i in range(item.options)) for item in task.items]
    examples = task.shots * sum(lengths) / len(lengths)
    asked = lengths if limit is None else lengths[:limit]
    rows = zip(asked, task.items)
    return sum(
        item.options * min(context, (length + examples) / CHARACTERS_OF_A_TOKEN)
        for length, item in rows
    )
