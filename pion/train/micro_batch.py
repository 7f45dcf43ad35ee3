"""Choose the micro-batch: fit the predicted memory of a training step to the machine."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial

from pion.errors import BadInput
from pion.train.memory import predict_memory
from pion.train.workload import Workload

# The share of the memory that stays free, for fragmentation and for what a prediction leaves out.
HEADROOM = 0.1

# A micro-batch of more tokens than this is no faster.
USEFUL_TOKENS = {"cpu": 4096, "cuda": 65_536}

# Ranks that divide the weights gather all of them for each micro-batch. On cards in slots, a
# micro-batch of fewer tokens than this waits for the weights (estimated: 8 bytes of each of 3
# parameters of which one is used, at 18 GB/s, next to 6 FLOPs at 22 TFLOP/s: about 5,000).
GATHERING_TOKENS = 8192


class DoesNotFit(BadInput):
    """A training step needs more memory than the `usable` bytes; `what` says how much."""

    def __init__(self, message: str, what: str, usable: int) -> None:
        self.what, self.usable = what, usable
        super().__init__(message)


def choose_micro_batch(
    work: Workload,
    *,
    rows_per_rank: int,
    memory_bytes: int,
    recompute: bool | None = None,
    joined: int = 1,
) -> tuple[int, bool]:
    """Return the micro-batch for a rank with `memory_bytes`, and whether to recompute activations.

    The rank's rows of a step are cut into the fewest micro-batches, of a power-of-two size that
    fits and is useful. Then the sizes are evened out. Recomputing activations costs a third more
    arithmetic, so activations are recomputed only if one row does not fit otherwise, or as
    `recompute` says. Ranks that divide the weights recompute, too, if they would else gather the
    weights for few tokens and more rows fit so.

    If some phase reads `joined` rows as one, a micro-batch of these fits, too. It has as many
    tokens, or one such row.

    Raises DoesNotFit, a BadInput, if even one row does not fit.
    """
    if joined > 1:
        long_rows, recompute = choose_micro_batch(
            replace(work, seq_len=joined * work.seq_len),
            rows_per_rank=-(-rows_per_rank // joined),
            memory_bytes=memory_bytes,
            recompute=recompute,
        )
        rows, recompute = choose_micro_batch(
            work, rows_per_rank=rows_per_rank, memory_bytes=memory_bytes, recompute=recompute
        )
        return min(rows, long_rows * joined), recompute
    available = int(memory_bytes * (1 - HEADROOM))
    useful = max(1, USEFUL_TOKENS[work.device] // work.seq_len)
    fitting: list[tuple[int, bool]] = []
    needed = 0
    for again in (False, True) if recompute is None else (recompute,):
        best, needed = _largest_that_fits(work, min(useful, rows_per_rank), available, again)
        if best:
            micro_batches = -(-rows_per_rank // best)
            fitting.append((-(-rows_per_rank // micro_batches), again))
            if not work.sharded or best * work.seq_len >= GATHERING_TOKENS or micro_batches == 1:
                break
    if fitting:
        return max(fitting, key=lambda chosen: chosen[0])  # the first, of equal ones
    raise _does_not_fit(work, needed, available, memory_bytes, recompute)


def _largest_that_fits(
    work: Workload, most: int, available: int, recompute: bool
) -> tuple[int, int]:
    """Return the largest power of two of rows up to `most` that fits, and what one row needs.

    The power is 0 if even one row does not fit. A prediction takes a tenth of a second, and more
    rows need more: after one row, the most are tried, and then the middle of what is left.
    """

    def needed(power: int) -> int:
        return predict_memory(work, micro_batch=2**power, recompute=recompute).total

    of_one = needed(0)
    if of_one > available:
        return 0, of_one
    fits, fails = 0, max(1, most).bit_length()  # powers of two
    tried = fails - 1
    while fails - fits > 1:
        if needed(tried) > available:
            fails = tried
        else:
            fits = tried
        tried = (fits + fails) // 2
    return 2**fits, of_one


def _does_not_fit(
    work: Workload, needed: int, available: int, memory_bytes: int, recompute: bool | None
) -> DoesNotFit:
    usable = available / 2**30
    model_words = (
        f"the model does not fit: training on one row of {work.seq_len} tokens needs "
        f"{needed / 2**30:.1f} GiB"
    )
    message = (
        f"the model does not fit: training on one row of {work.seq_len} tokens needs "
        f"{needed / 2**30:.1f} GiB, and {usable:.1f} of this machine's "
        f"{memory_bytes / 2**30:.1f} GiB can be used. Use a larger machine, a smaller model or "
        "shorter rows (seq_len)"
    )
    if work.sharded:
        model_words += f" on each of {work.ranks} workers that divide the weights"
        message = (
            f"{model_words}, and {usable:.1f} of {memory_bytes / 2**30:.1f} GiB can be used. Use "
            "more or larger GPUs, a smaller model or shorter rows (seq_len)"
        )
    if recompute not in (None, True):
        message += ", or allow recompute"
    return DoesNotFit(message, model_words, available)


def choose_sharing(
    work: Workload,
    *,
    sharded: bool | None,
    rows_per_rank: int,
    memory_bytes: int,
    recompute: bool | None = None,
    joined: int = 1,
) -> tuple[Workload, int, bool]:
    """Return the work as the ranks share it, and what `choose_micro_batch` returns for it.

    Ranks divide the weights (`sharded`) as asked. If that is left open (None), GPUs do only if one
    row does not fit otherwise, because to gather weights takes time.

    Raises DoesNotFit, a BadInput, if even one row does not fit.
    """
    divided = replace(work, sharded=True)
    ways = [replace(work, sharded=False), divided] if sharded is None else [divided]
    if sharded is False or work.ranks == 1 or (sharded is None and work.device != "cuda"):
        ways = [replace(work, sharded=False)]
    choose = partial(
        choose_micro_batch,
        rows_per_rank=rows_per_rank,
        memory_bytes=memory_bytes,
        recompute=recompute,
        joined=joined,
    )
    *others, last = ways
    for way in others:
        with suppress(DoesNotFit):
            return way, *choose(way)
    return last, *choose(last)
