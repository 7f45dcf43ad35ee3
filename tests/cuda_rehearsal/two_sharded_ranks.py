"""Train a step as each of two ranks that keep parts of the model, on a pretended card.

See two_ranks.py. environment.py starts this program, with the families to rehearse:
`python -m tests.cuda_rehearsal.two_sharded_ranks dense lora`.
"""

from __future__ import annotations

import sys

from pion.model.attention.rope import rotary_table
from tests.cuda_rehearsal.pretended_card import insert_card
from tests.cuda_rehearsal.two_ranks import Rank, main, seen_in, trainer_of
from tests.cuda_rehearsal.watch import Watch


def rehearse(watch: Watch, family: str, number: int) -> Rank:
    """Train a step as this rank."""
    rank = Rank()
    insert_card("A40")
    rotary_table.cache_clear()
    with trainer_of(family, number, sharded=True) as trainer:
        with seen_in(watch, rank):
            trainer.train_step()
        state = trainer.state()
    moments = [piece for piece in state.pieces if piece.name in state.optimizer]
    rank.moments = sum(piece.values.nbytes for piece in moments)
    rank.all_moments = sum(tensor.nbytes for tensor in state.optimizer.values())
    return rank


if __name__ == "__main__":
    main(rehearse, sys.argv[1:])
