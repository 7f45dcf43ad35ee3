"""Trainers of tiny models whose ranks keep parts of them, and one process that keeps all."""

from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.families.families import FAMILIES
from tests.pion.train.conftest import open_stream
from tests.support import whole_state

# 5 rows: no world size divides them, so the last ranks have fewer micro-batches than the first.
GLOBAL_BATCH = 5


def rows_of(name, folder):
    """Return conversations for a family, in a new folder below this one.

    Ranks learn uneven numbers of their tokens.
    """
    new = folder / f"{name}-{len(list(folder.glob('*')))}"
    return open_stream(new, conversations=True, config=FAMILIES[name].config())


def make(name, stream, *, world_size=1, rank=0, model=None, weights=None, **changes):
    """Return a trainer of a family's tiny model. `changes` are of TrainSettings and ComputePlan.

    Several ranks keep parts, unless `sharded` says otherwise.
    """
    family = FAMILIES[name]
    plan = {
        "micro_batch": 1,
        "threads": 1,
        "world_size": world_size,
        "sharded": world_size > 1,
    }
    known = ComputePlan.__dataclass_fields__.keys()
    plan |= {key: value for key, value in changes.items() if key in known}
    settings = {
        "steps": 20,
        "global_batch": GLOBAL_BATCH,
        "lr": 1e-3,
        "warmup_steps": 2,
    }
    settings |= family.settings()
    settings |= {key: value for key, value in changes.items() if key not in known}
    return Trainer(
        # What rank 0 has drawn counts for all.
        family.decoder(rank) if model is None else model,
        stream,
        TrainSettings(**settings),
        ComputePlan(**plan),
        rank=rank,
        weights=weights,
    )


def train(trainer, steps):
    """Train so many steps; return what each has measured."""
    whole_state.train(trainer, steps)
    wanted = ("loss", "grad_norm", "tokens", "rows")
    return [{key: row[key] for key in wanted} for row in trainer.drain_metrics()]


def stop_on_rank_1(trainer):
    """Let rank 1 alone ask to stop before its second micro-batch; return what came of the step."""
    before, asked = whole_state.whole_state(trainer), 0

    def only_rank_1_before_the_second_micro_batch():
        nonlocal asked
        asked += 1
        return trainer.rank == 1 and asked == 2

    finished = trainer.train_step(only_rank_1_before_the_second_micro_batch)
    unchanged = whole_state.same(before, whole_state.whole_state(trainer))
    return {"finished": finished, "unchanged": unchanged, "asked": asked}


STOPPED = {"finished": False, "unchanged": True, "asked": 2}


def apart(one, other):
    """Return the largest difference of two models' weights."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)
