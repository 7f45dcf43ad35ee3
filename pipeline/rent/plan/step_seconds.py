"""How many seconds an optimizer step takes on several cards: an estimate, from counts alone.

    step      = computing + summing + Muon + gathering
    computing = max(rows of the rank that has the most × FLOPs of a row / FLOP/s, starting)
    starting  = LAUNCH_SECONDS × (micro-batches × LAUNCHES × (blocks + 1) + LAUNCHES_OF_UPDATE)
    summing   = max(S − B, L)
                S = 2 (n − 1)/n × bytes of all gradients / bus bandwidth
                B = the backward pass of the rank's last micro-batch
                L = as S, of the bucket that is complete last
    Muon      = FLOPs of Newton–Schulz on the busiest rank / FLOP/s
    gathering = (n − 1)/n × bytes of all updates / bus bandwidth

Each matrix is updated whole by one rank, which owns it, and the other ranks get the update. AdamW's
parameters are divided alike. With more cards, computing and Muon take less time, and summing and
gathering take more.

If the cards divide the weights (`StepWork.in_parts`), they gather the weights of a block before
each forward and each backward pass of a micro-batch, and give away their gradients after it:

    summing   = micro-batches × max(G_b − backward pass, 0), and the last group's gradients
                G_b = (n − 1)/n × (bytes of blocks + bytes of all gradients) / bus bandwidth
    gathering = micro-batches × max(G_f − forward pass, 0), the first group's weights, and Muon's
                matrices, to their owners and back
                G_f = (n − 1)/n × bytes of blocks / bus bandwidth

FLOP/s is what makes a step on one card as fast as that card is known or assumed to be. A card is
assumed to compute as fast in small micro-batches as in large ones, next to a sum as without it, and
in Newton–Schulz as in training. The sum is hidden as well as it can be, and the gathering not at
all, although the next matrices are orthogonalized meanwhile. Starting messages takes no time here.

A card can't compute faster than its host starts kernels, which decides how long small steps take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from pion.data.order import rows_per_rank
from pion.train.optimizer.muon import newton_schulz_flops
from pion.train.optimizer.ownership import Shape, deal_matrices

# The hosts of a rented H200 and a rented H100 took 31 and 42 µs for each kernel of
# `pion2-max-small` (docs/performance.md). A slower or faster host is possible.
LAUNCH_SECONDS = 30e-6
# Kernels of a compiled block, forward and backward; embedding and loss count as one more block. An
# H100 ran 1,343 in a step of `pion-small`, whose 16 blocks count as 1,310 here.
LAUNCHES = 70
LAUNCHES_OF_UPDATE = 120  # clipping, Muon, AdamW, metrics


@dataclass(frozen=True)
class InParts:
    """What cards send each other if they divide the weights, in bytes.

    Attributes:
        blocks: the weights of all blocks, as they are gathered.
        rest: all other weights, which are gathered once a micro-batch, before everything else.
        gradients: of all weights, in fp32.
        matrices: what Muon's matrices take, to their owners and back.
    """

    blocks: int
    rest: int
    gradients: int
    matrices: int = 0


@dataclass(frozen=True)
class StepWork:
    """What an optimizer step computes and sends, on any number of cards.

    Attributes:
        global_batch: rows of a step, of all ranks.
        seq_len: tokens of a row.
        forward_flops: FLOPs of a token in the forward pass.
        backward_flops: FLOPs of a token in the backward pass, with what it recomputes.
        micro_batch: the most rows that a rank computes at once.
        blocks: of the model; None: the speed of a card has the time of its host in it.
        gradient_bytes: of all gradients, which are summed over ranks in fp32.
        last_bucket_bytes: of the gradients that are sent when the backward pass has ended.
        update_bytes: of all updates, which the ranks that own them send to the others.
        matrices: the shapes of the matrices that Muon updates.
        in_parts: what cards send each other if they divide the weights.
    """

    global_batch: int
    seq_len: int
    forward_flops: float
    backward_flops: float
    micro_batch: int
    blocks: int | None
    gradient_bytes: int
    last_bucket_bytes: int
    update_bytes: int
    matrices: tuple[Shape, ...] = ()
    in_parts: InParts | None = None  # None: each card has all weights

    @property
    def tokens(self) -> int:
        """The tokens of a step."""
        return self.global_batch * self.seq_len

    def flops_per_second(self, tokens_per_second: float) -> float:
        """Return the FLOP/s at which one card alone trains so many tokens per second, with Muon."""
        training = self.tokens * (self.forward_flops + self.backward_flops)
        return (training + busiest_flops(self.matrices, 1)) * tokens_per_second / self.tokens


@dataclass(frozen=True)
class StepSeconds:
    """The estimated seconds of a step on `cards` cards, by what takes them."""

    cards: int
    tokens: int  # of a step, of all cards
    computing: float
    starting: float  # the least that computing takes: the host starts its kernels
    summing: float  # the gradients, as far as the backward pass does not hide it
    muon: float  # Newton–Schulz, on the busiest rank
    gathering: float
    # How long the links are busy with weights that the cards divide, and with their gradients: most
    # of it is hidden. 0: each card has all weights.
    exchanging: float = 0.0

    @property
    def seconds(self) -> float:
        return self.computing + self.summing + self.muon + self.gathering

    @property
    def tokens_per_second(self) -> float:
        """The tokens per second of all cards together."""
        return self.tokens / self.seconds

    @property
    def muon_share(self) -> float:
        """The share of Muon's arithmetic in a step."""
        return self.muon / self.seconds

    @property
    def waits_for_host(self) -> bool:
        """Whether a card would compute faster than its host starts kernels."""
        return self.computing == self.starting


def step_seconds(
    work: StepWork,
    cards: int,
    *,
    flops_per_second: float,
    bytes_per_second: float,
    sharded: bool = True,
) -> StepSeconds:
    """Return the seconds of a step on `cards` cards, by the formulas above.

    `flops_per_second` is what one card reaches, and `bytes_per_second` the bus bandwidth of the
    links. If `sharded` is False, every rank updates all parameters and gathers nothing.
    """
    rows = rows_per_rank(work.global_batch, cards)
    if work.in_parts is not None:
        return _seconds_in_parts(work, work.in_parts, cards, flops_per_second, bytes_per_second)
    starting = _starting(work, rows)
    last = rows - work.micro_batch * (math.ceil(rows / work.micro_batch) - 1)
    of_row = work.seq_len * (work.forward_flops + work.backward_flops)
    backward = last * work.seq_len * work.backward_flops / flops_per_second
    gathered = (cards - 1) / cards / bytes_per_second  # seconds for each byte of all ranks
    summing = max(
        2 * gathered * work.gradient_bytes - backward, 2 * gathered * work.last_bucket_bytes
    )
    owners = cards if sharded else 1
    return StepSeconds(
        cards=cards,
        tokens=work.tokens,
        computing=max(rows * of_row / flops_per_second, starting),
        starting=starting,
        summing=summing,
        muon=busiest_flops(work.matrices, owners) / flops_per_second,
        gathering=gathered * work.update_bytes if sharded else 0.0,
    )


def _seconds_in_parts(
    work: StepWork, parts: InParts, cards: int, flops_per_second: float, bytes_per_second: float
) -> StepSeconds:
    rows = rows_per_rank(work.global_batch, cards)
    passes, starting = math.ceil(rows / work.micro_batch), _starting(work, rows)
    tokens = rows * work.seq_len / passes  # of a pass
    each = (cards - 1) / cards / bytes_per_second  # seconds for a byte of all ranks
    last = min(parts.rest, parts.gradients)
    gathering, summing = each * parts.blocks, each * (parts.blocks + parts.gradients - last)
    forward, backward = (
        tokens * flops / flops_per_second for flops in (work.forward_flops, work.backward_flops)
    )
    to_owners = each * parts.matrices / cards
    at_the_ends = each * (parts.rest + last)
    return StepSeconds(
        cards=cards,
        tokens=work.tokens,
        computing=max(passes * (forward + backward), starting),
        starting=starting,
        summing=passes * (max(summing - backward, 0.0) + each * last),
        muon=busiest_flops(work.matrices, cards) / flops_per_second,
        gathering=passes * (max(gathering - forward, 0.0) + each * parts.rest) + to_owners,
        exchanging=passes * (gathering + summing + at_the_ends) + to_owners,
    )


def _starting(work: StepWork, rows: int) -> float:
    """Return the seconds in which a host starts the kernels of a step over so many rows."""
    if work.blocks is None:
        return 0.0
    launches = math.ceil(rows / work.micro_batch) * LAUNCHES * (work.blocks + 1)
    return LAUNCH_SECONDS * (launches + LAUNCHES_OF_UPDATE)


@lru_cache(maxsize=64)
def busiest_flops(matrices: tuple[Shape, ...], ranks: int) -> int:
    """Return the FLOPs of Newton–Schulz on the rank that has the most of them."""
    return max(
        sum(newton_schulz_flops(*matrices[number]) for number in owned)
        for owned in deal_matrices(matrices, ranks)
    )
