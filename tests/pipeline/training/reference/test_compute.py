"""The pass that computes a reference survives a kill at each of its writes, and loses little."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pion.errors import BadInput, Interrupted, PlanFailed, Stopped
from pion.train.smaller_plan import StepTooLarge
from pipeline.console.messages import Note, Phase, PrepareProgress
from pipeline.cost.timeline import REFERENCE_PASS
from pipeline.data.fingerprint import APART
from pipeline.state.claim import claim_again
from pipeline.state.stores import FileStore
from pipeline.training.context import MAX_ATTEMPTS
from pipeline.training.reference import compute, of_stage
from pipeline.training.reference.compute import batches
from tests.faults.faulty_store import Crash, FaultyStore
from tests.support.jobs import tiny_job
from tests.support.reference_world import (
    Threads,
    World,
    begin,
    model_of_the_world,
    numbers_of,
)
from tests.support.waiting import wait_until

ROWS = 14


@pytest.fixture(autouse=True)
def _each_batch_is_kept(monkeypatch):
    monkeypatch.setattr(compute, "KEPT_SECONDS", 0.0)


def another(world, name="other"):
    """Return a world with the same rows and another store, which has no numbers yet."""
    (world.folder / name).mkdir()
    (world.folder / name / "rows").symlink_to(world.folder / "rows")
    return World(world.folder / name)


def counted(monkeypatch):
    """Return a list that gets the rows of each batch that is computed from now on."""
    computed = []
    real = compute.sums_of

    def counting(model, batch, plan):
        computed.append(len(batch.tokens))
        return real(model, batch, plan)

    monkeypatch.setattr(compute, "sums_of", counting)
    return computed


# ---------------------------------------------------------------- what it computes


def test_the_numbers_are_sums_of_log_probabilities_of_each_answer(world):
    reference, model = world.make(), model_of_the_world()
    for split, stream in world.streams().items():
        expected = []
        for source, number, shard in stream.shards():
            for row in range(shard.rows):
                batch = stream.batch_at([(source, number, row)])
                for document in range(int(batch.documents.max()) + 1):
                    inside = batch.documents[0] == document
                    ids, targets = batch.tokens[0][inside], batch.targets[0][inside]
                    found = model(ids[None])[0].double().log_softmax(dim=-1)
                    learned = (targets >= 0).nonzero().flatten()
                    expected.append(float(found[learned, targets[learned]].detach().sum()))
        found = [number for row in numbers_of(reference.streams[split]) for number in row]
        assert found == pytest.approx(expected, abs=1e-3)


def test_the_model_is_as_before(world):
    model = model_of_the_world().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    world.make(model=model)
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(param.grad is None for param in model.parameters())


def test_the_pass_says_how_far_it_is_and_what_it_took(world):
    world.make()
    said = [message for message in world.said if isinstance(message, PrepareProgress)]
    assert [message.done for message in said] == [2, 4, 6, 8, 10, 12, 14]  # of both splits
    assert {(m.stage, m.what, m.unit, m.total) for m in said} == {
        ("prefer", "reference pass", "rows", ROWS)
    }
    assert all(message.eta is not None for message in said)
    assert said[-1].eta == 0
    (took,) = [message for message in world.said if isinstance(message, Phase)]
    assert took.name == REFERENCE_PASS


def test_a_run_of_a_proof_shares_no_numbers(world, monkeypatch):
    world.make()
    monkeypatch.setenv(APART, "a proof")
    computed = counted(monkeypatch)
    world.make("proof")
    assert sum(computed) == ROWS


def test_a_model_that_predicts_nan_is_no_reference(world):
    broken = model_of_the_world()
    with torch.no_grad():
        broken.norm.weight.fill_(float("nan"))
    with pytest.raises(BadInput, match=r"can't be a reference.*nan"):
        world.make(model=broken)


def test_too_little_memory_asks_for_a_smaller_plan_as_a_step_does(world, monkeypatch):
    def too_little(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compute, "sums_of", too_little)
    with pytest.raises(PlanFailed) as failed:
        world.make()
    assert failed.value.plan["micro_batch"] == 1
    smallest = {"micro_batch": 1, "recompute": True, "world_size": 2}
    with pytest.raises(PlanFailed) as failed:
        world.make(**smallest)
    assert failed.value.plan["sharded"]
    with world.context() as context:
        context.job = tiny_job(sft=None, hardware__fsdp=False)
        with pytest.raises(StepTooLarge, match=r"hardware\.fsdp: true"):
            begin(context, world.streams(), world.start(**smallest))


# ---------------------------------------------------------------- kills and stops


def operations_until(world, at=None, when="before"):
    """Let a process begin the stage that dies at its `at`-th operation of the store, if at all.

    Return its operations after it has claimed the run.
    """
    store = FaultyStore(FileStore(world.folder / "runs"))
    with world.context(store=store) as context:
        claimed = len(store.operations)
        store._at, store._when = None if at is None else claimed + at, when
        begin(context, world.streams(), world.start())
        return store.operations[claimed:]


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.soak)])
def test_a_kill_at_each_write_changes_no_bit_and_loses_one_batch_at_most(world, monkeypatch, every):
    record = another(world, "unbroken").make().record
    operations = enumerate(operations_until(another(world, "counted")), start=1)
    kills = [(n, o, when) for n, o in operations if changes(o) for when in ("before", "after")]
    for number, operation, when in kills[::every]:
        other = another(world, f"{number}-{when}")
        with monkeypatch.context() as counting:
            computed = counted(counting)
            with pytest.raises(Crash):
                operations_until(other, number, when)
            assert other.make().record == record, operation
        assert sum(computed) <= ROWS + other.micro_batch, operation
        assert not FileStore(other.folder / "runs").list("tiny/reference/"), operation


def changes(operation):
    return operation.partition(" ")[0] in ("write", "swap", "delete")


def test_a_pass_that_continues_says_where(world):
    writes = [n for n, o in enumerate(operations_until(another(world)), 1) if "write tiny/ref" in o]
    with pytest.raises(Crash):
        operations_until(world, writes[2], "after")
    world.said.clear()
    world.make()
    note, *_ = [message for message in world.said if isinstance(message, Note)]
    assert note.text == "prefer: reference pass: continuing after row 6 of 14"
    said = [message.done for message in world.said if isinstance(message, PrepareProgress)]
    assert said == [8, 10, 12, 14]


def test_each_start_that_computes_some_rows_is_progress(world):
    """Machines vanish: many starts may be needed for a long pass."""
    world.micro_batch = 1
    for _ in range(MAX_ATTEMPTS + 1):
        with pytest.raises(Crash):
            die_after_two_batches(world)
    world.make()


def die_after_two_batches(world):
    store = FaultyStore(FileStore(world.folder / "runs"))

    def look():
        if sum("write tiny/reference" in operation for operation in store.operations) == 2:
            store.die()

    with world.context(store=store) as context:
        context.owned = claim_again(context.run, context.owned.head.owner)
        assert context.owned.head.failed_attempts < MAX_ATTEMPTS
        store.look = look
        begin(context, world.streams(), world.start())


@pytest.mark.parametrize("why", ["interrupted", "asked"])
def test_a_stop_keeps_what_is_computed(world, monkeypatch, why):
    monkeypatch.setattr(compute, "KEPT_SECONDS", 3600.0)
    computed = counted(monkeypatch)
    world.asked, error = why == "interrupted", Interrupted if why == "interrupted" else Stopped
    with world.context() as context:
        if why == "asked":
            context.owned.heartbeat.stop_request = "by a person"
        with pytest.raises(error, match=r"Its numbers so far are safe|by a person"):
            begin(context, world.streams(), world.start())
    world.asked = False
    world.make()
    assert sum(computed) == ROWS


# ---------------------------------------------------------------- several ranks


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_rows_of_a_batch_do_not_depend_on_the_number_of_ranks(ranks):
    rounds = list(batches(4, 17, 3, ranks))
    assert all(len(parts) == ranks for parts in rounds)
    every = [part for parts in rounds for part in parts if part]
    assert every == [range(4, 7), range(7, 10), range(10, 13), range(13, 16), range(16, 17)]


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.soak), 3])
def test_ranks_divide_the_rows_and_all_get_all_numbers(world, monkeypatch, ranks):
    alone, other = world.make("alone"), another(world)
    threads, computed = Threads(ranks), counted(monkeypatch)
    starts = [other.start() for _ in range(ranks)]
    complete = of_stage.complete

    def slow_complete(*arguments):
        """Share when the other ranks wait for it, or have given up."""
        wait_until(
            lambda: threads.barrier.n_waiting == ranks - 1 or threads.barrier.broken,
            "the other ranks to wait",
        )
        return complete(*arguments)

    monkeypatch.setattr(of_stage, "complete", slow_complete)

    def one(rank):
        try:
            with other.context(group=threads.group(rank)) as context:
                return begin(context, other.streams(), starts[rank])
        except BaseException:
            threads.barrier.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        found = list(pool.map(one, range(ranks)))
    assert [reference.record for reference in found] == [alone.record] * ranks
    assert sum(computed) == ROWS
