"""The pass that computes a reference loses a chunk at most, and never has trained weights."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pion.errors import BadInput, Interrupted, PionError, PlanFailed
from pion.train.reference import check_reference, sums_of
from pion.train.smaller_plan import StepTooLarge
from pipeline.console.messages import Note, Phase, PrepareProgress
from pipeline.cost.timeline import REFERENCE_PASS
from pipeline.data.fingerprint import APART
from pipeline.state.claim import claim_again
from pipeline.state.head import REFERENCE
from pipeline.training.context import MAX_ATTEMPTS
from pipeline.training.reference import compute
from pipeline.training.reference.chunks import Chunks
from pipeline.training.reference.compute import (
    bound_reference,
    first_batch,
    make_reference,
    require_base,
    require_same,
)
from pipeline.training.reference.share import Sharing
from tests.support.jobs import tiny_job
from tests.support.reference_world import Threads, World, make_world, model_of_the_world
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    make_world(folder)
    return folder


@pytest.fixture
def world(rows, tmp_path):
    (tmp_path / "rows").symlink_to(rows / "rows")
    return World(tmp_path)


@pytest.fixture(autouse=True)
def _chunks_are_small(monkeypatch):
    monkeypatch.setattr(compute, "CHUNK_SECONDS", 0.0)


def make(world, name="tiny", **plan):
    with world.context(name) as context:
        return make_reference(context, world.streams(), world.start(**plan))


def another(world, name="other"):
    """Return a world with the same rows and another store, which has no numbers yet."""
    (world.folder / name).mkdir()
    (world.folder / name / "rows").symlink_to(world.folder / "rows")
    return World(world.folder / name)


def bits(bound):
    return {split: found.sums.tobytes() for split, found in bound.splits.items()}


class Died(BaseException):
    """The process was killed here."""


def dies_at(monkeypatch, write, *, after):
    """Let the process die at its chunk number `write`, before or after this is durable."""
    real, seen = Chunks.write, [0]

    def dying(self, split, rows):
        seen[0] += 1
        if seen[0] == write and not after:
            raise Died
        real(self, split, rows)
        if seen[0] == write:
            raise Died

    monkeypatch.setattr(Chunks, "write", dying)


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
    bound, model = make(world), model_of_the_world()
    for split, stream in world.streams().items():
        places = list(stream.places())
        for number, place in enumerate(places):
            batch = stream.batch_at([place])
            expected = []
            for document in range(int(batch.documents.max()) + 1):
                inside = batch.documents[0] == document
                ids, targets = batch.tokens[0][inside], batch.targets[0][inside]
                found = model(ids[None])[0].double().log_softmax(dim=-1)
                learned = (targets >= 0).nonzero().flatten()
                expected.append(float(found[learned, targets[learned]].detach().sum()))
            assert bound.splits[split].of(number) == pytest.approx(expected, abs=1e-3)


def test_the_model_is_as_before(world):
    start = world.start()
    before = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    start.model.eval()
    with world.context() as context:
        make_reference(context, world.streams(), start)
    assert not start.model.training
    for name, tensor in start.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(param.grad is None for param in start.model.parameters())


def test_head_names_the_numbers_and_no_chunk_is_left(world):
    with world.context() as context:
        make_reference(context, world.streams(), world.start())
        head = context.run.read()
        _, key, folder = head.data[REFERENCE].split("/")
        assert not context.run.store.list("tiny/reference/")
    described = json.loads((world.folder / f"runs/_data/{key}/{folder}/reference.json").read_text())
    assert described["key"] == key
    assert described["dtype"] == "float32"
    assert described["weights"] == world.start().weights


def test_the_pass_says_how_far_it_is_and_what_it_took(world):
    make(world)
    said = [message for message in world.said if isinstance(message, PrepareProgress)]
    assert [message.done for message in said] == [2, 4, 6, 8, 10, 12, 14]  # of both splits
    assert {(m.stage, m.what, m.unit, m.total) for m in said} == {
        ("prefer", "reference pass", "rows", 14)
    }
    assert all(message.eta is not None for message in said)
    assert said[-1].eta == 0
    (took,) = [message for message in world.said if isinstance(message, Phase)]
    assert took.name == REFERENCE_PASS
    world.said.clear()
    make(world, "other")  # which finds the numbers
    assert not [m for m in world.said if isinstance(m, Phase | PrepareProgress)]


def test_a_pass_that_continues_counts_what_is_done(world, monkeypatch):
    with monkeypatch.context() as dying:
        dies_at(dying, 3, after=True)
        with pytest.raises(Died):
            make(world)
    world.said.clear()
    make(world)
    note, *_ = [message for message in world.said if isinstance(message, Note)]
    assert note.text == "prefer: reference pass: continuing train after row 6"
    said = [message.done for message in world.said if isinstance(message, PrepareProgress)]
    assert said == [8, 10, 12, 14]


def test_a_run_of_a_proof_shares_no_numbers(world, monkeypatch):
    shared = bits(make(world))
    monkeypatch.setenv(APART, "a proof")
    computed = counted(monkeypatch)
    assert bits(make(world, "proof")) == shared
    assert sum(computed) == 14


# ---------------------------------------------------------------- kills and stops


@pytest.mark.parametrize(
    ("after", "every"),
    [
        (False, 3),
        (True, 4),
        pytest.param(False, 1, marks=pytest.mark.soak),
        pytest.param(True, 1, marks=pytest.mark.soak),
    ],
)
def test_a_kill_at_any_chunk_changes_no_bit_and_loses_one_chunk_at_most(
    world, monkeypatch, after, every
):
    unbroken = bits(make(world, "unbroken"))
    chunks = 5 + 2
    for write in range(1 + (after and every > 1), chunks + 1, every):
        other = another(world, f"{after}-{write}")
        with monkeypatch.context() as dying:
            dies_at(dying, write, after=after)
            with pytest.raises(Died):
                make(other)
        with monkeypatch.context() as counting:
            computed = counted(counting)
            assert bits(make(other)) == unbroken
        assert sum(computed) == 14 - 2 * (write - 1 + after)


def test_a_stop_keeps_what_is_computed(world, monkeypatch):
    monkeypatch.setattr(compute, "CHUNK_SECONDS", 3600.0)
    real = compute.sums_of

    def asked_meanwhile(*arguments):
        world.asked = True
        return real(*arguments)

    with monkeypatch.context() as asking:
        asking.setattr(compute, "sums_of", asked_meanwhile)
        with pytest.raises(Interrupted, match="Its numbers so far are safe"):
            make(world)
    world.asked = False
    computed = counted(monkeypatch)
    make(world)
    assert sum(computed) == 14 - 2


# ---------------------------------------------------------------- several ranks


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.soak), 3])
def test_ranks_divide_the_rows_and_all_get_all_numbers(world, monkeypatch, ranks):
    alone = make(world, "alone")
    other = another(world)
    threads, computed = Threads(ranks), counted(monkeypatch)
    starts = [other.start() for _ in range(ranks)]
    share = Sharing.share

    def slow_share(self, *arguments, **options):
        """Share when the other ranks wait for it, or have given up."""
        wait_until(
            lambda: threads.barrier.n_waiting == ranks - 1 or threads.barrier.broken,
            "the other ranks to wait",
        )
        share(self, *arguments, **options)

    monkeypatch.setattr(Sharing, "share", slow_share)

    def one(rank):
        try:
            with other.context(group=threads.group(rank)) as context:
                return make_reference(context, other.streams(), starts[rank])
        except BaseException:
            threads.barrier.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        found = list(pool.map(one, range(ranks)))
    assert [bits(bound) for bound in found] == [bits(alone)] * ranks
    assert sum(computed) == 14


def test_no_rank_computes_before_all_have_read_their_rows(world, monkeypatch):
    """Ranks of a sharded model would wait for the weights of one that can't read."""
    bound, other = make(world), World(world.folder / "other")
    shutil.copytree(world.folder / "rows", other.folder / "rows")
    damaged = other.streams()
    (other.folder / "rows/train/shard_00000.npy").write_bytes(b"")
    threads, computed = Threads(2), list[str]()
    real = compute.check_reference

    def counting(*given, **options):
        computed.append("a batch")
        return real(*given, **options)

    monkeypatch.setattr(compute, "check_reference", counting)

    def refusal(rank):
        streams = damaged if rank == 1 else world.streams()
        with (
            world.context(group=threads.group(rank)) as context,
            pytest.raises(PionError) as refused,
        ):
            require_base(context, streams, world.start(), bound)
        return str(refused.value)

    with ThreadPoolExecutor(2) as pool:
        reasons = list(pool.map(refusal, range(2)))
    assert reasons == [reasons[0]] * 2
    assert "shard_00000" in reasons[0]
    assert not computed


# ---------------------------------------------------------------- one pass for many runs


def test_another_run_of_the_store_needs_no_second_pass(world, monkeypatch):
    first = make(world, "first")
    computed = counted(monkeypatch)
    second = make(world, "second")
    assert bits(second) == bits(first)
    assert second.record == first.record
    assert not computed


def test_other_weights_and_another_dtype_need_their_own_numbers(world, monkeypatch):
    first = make(world, "first")
    computed = counted(monkeypatch)
    with world.context("second") as context:
        other = make_reference(context, world.streams(), world.start(model_of_the_world(1)))
    assert bits(other) != bits(first)
    assert sum(computed) == 14
    computed.clear()
    rounded = make(world, "third", dtype="bfloat16")
    assert rounded.record != first.record
    assert sum(computed) == 14


def test_a_run_that_starts_again_with_other_weights_gets_their_numbers(world):
    first = make(world)
    with world.context() as context:
        again = make_reference(context, world.streams(), world.start(model_of_the_world(1)))
        assert bits(bound_reference(context, world.streams())) == bits(again) != bits(first)


# ---------------------------------------------------------------- what is bound


def test_a_stage_that_resumes_computes_nothing(world, monkeypatch):
    first = make(world)
    computed = counted(monkeypatch)
    with world.context() as context:
        found = bound_reference(context, world.streams())
    assert bits(found) == bits(first)
    assert not computed


def test_a_stage_that_resumes_without_numbers_is_refused(world):
    with world.context() as context, pytest.raises(PionError, match="no reference data") as refused:
        bound_reference(context, world.streams())
    assert "can't continue with other numbers" in str(refused.value)
    assert "--redo prefer" in str(refused.value)


def test_a_checkpoint_of_other_numbers_is_refused(world):
    bound = make(world)
    folder = world.folder / "checkpoint"
    folder.mkdir()
    (folder / "reference.json").write_bytes(bound.record)
    with world.context("second") as context:
        require_same(context, bound, folder)
        require_same(context, bound, None)  # a stage without a checkpoint
        other = make_reference(context, world.streams(), world.start(model_of_the_world(1)))
        with pytest.raises(PionError, match=r"other numbers of a reference .* --redo prefer"):
            require_same(context, other, folder)
        (folder / "reference.json").unlink()
        with pytest.raises(PionError, match="other numbers"):
            require_same(context, bound, folder)


def damage(world, wrong):
    """Damage the numbers of training rows in the store."""
    (path,) = (world.folder / "runs/_data").glob("*/*/train.sums.npy")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.unlink()  # other names may be links to the same file
    if wrong == "gone":
        shutil.rmtree(path.parent)
    elif wrong != "missing":
        path.write_bytes(data if wrong == "flipped" else data[:-8])


DAMAGES = ("flipped", "shorter", "missing", "gone")


@pytest.mark.parametrize("wrong", DAMAGES)
def test_a_stage_does_not_resume_with_numbers_that_changed_in_the_store(world, wrong):
    make(world)
    damage(world, wrong)
    with world.context() as context, pytest.raises(PionError, match="--redo prefer"):
        bound_reference(context, world.streams())


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        pytest.param(
            wrong,
            name,
            # By default, each damage is found by this run or by another one.
            marks=[] if (name == "tiny") == (number % 2 == 0) else pytest.mark.soak,
        )
        for number, wrong in enumerate(DAMAGES)
        for name in ("tiny", "another")
    ],
)
def test_damaged_numbers_are_computed_again_before_a_step_has_learned_with_them(
    world, monkeypatch, wrong, name
):
    first = make(world)
    damage(world, wrong)
    computed = counted(monkeypatch)
    assert bits(make(world, name)) == bits(first)
    assert sum(computed) == 14
    assert any("computed again" in str(said) for said in world.said)
    computed.clear()
    assert bits(make(world, "third")) == bits(first)  # the store has good ones now
    assert not computed


REPLACED = {
    # The first rows stay: they are compared with the model.
    "scaled": lambda sums: np.append(sums[:-1], 2 * sums[-1]),
    "complex": lambda sums: sums.astype(np.complex128),
    "pipe": None,
}


@pytest.mark.parametrize(
    ("other", "listed"),
    [
        ("scaled", False),
        ("complex", True),
        ("pipe", False),
        *(
            pytest.param(*case, marks=pytest.mark.soak)
            for case in (("scaled", True), ("complex", False), ("pipe", True))
        ),
    ],
)
def test_numbers_that_no_list_has_are_not_there(world, monkeypatch, other, listed):
    """The list of the folder's hashes is missing, or has other files only."""
    first = make(world)
    (path,) = (world.folder / "runs/_data").glob("*/*/train.sums.npy")
    sums = np.load(path)
    path.unlink()
    change = REPLACED[other]
    if change is None:
        os.mkfifo(path)
    else:
        np.save(path, change(sums))
    files = path.with_name(".files.json")
    known = json.loads(files.read_bytes())
    del known["files"][path.name]
    files.unlink()
    if listed:
        files.write_text(json.dumps(known))
    computed = counted(monkeypatch)
    assert bits(make(world, "another")) == bits(first)
    assert sum(computed) == 14
    assert any("computed again" in str(said) for said in world.said)


def test_numbers_of_another_model_are_computed_again(world, monkeypatch):
    """A hash of weights can't tell everything: a card may compute otherwise."""
    right = bits(make(world, "right"))
    other = another(world)
    with monkeypatch.context() as wrong:
        wrong.setattr(compute, "sums_of", lambda *given: [[-3.0] * len(r) for r in sums_of(*given)])
        with pytest.raises(
            BadInput, match=r"not of these weights.*does not compute the same twice"
        ):
            make(other)
    assert bits(make(other)) == right


def test_each_start_that_computes_a_part_is_progress_and_changes_no_bit(world, monkeypatch):
    """Machines vanish: many starts may be needed for a long pass."""
    unbroken = bits(make(another(world)))
    for _ in range(MAX_ATTEMPTS + 1):
        with monkeypatch.context() as dying:
            dies_at(dying, 2, after=False)
            with world.context() as context:
                claim = context.owned
                context.owned = claim_again(claim.state, claim.head.owner)
                assert context.owned.head.failed_attempts < MAX_ATTEMPTS
                with pytest.raises(Died):
                    make_reference(context, world.streams(), world.start())
    assert bits(make(world)) == unbroken


def test_too_little_memory_asks_for_a_smaller_plan_as_a_step_does(world, monkeypatch):
    def too_little(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compute, "sums_of", too_little)
    with pytest.raises(PlanFailed) as failed:
        make(world)
    assert failed.value.plan["micro_batch"] == 1
    smallest = {"micro_batch": 1, "recompute": True, "world_size": 2}
    with pytest.raises(PlanFailed) as failed:
        make(world, **smallest)
    assert failed.value.plan["sharded"]
    with world.context() as context:
        context.job = tiny_job(sft=None, hardware__fsdp=False)
        with pytest.raises(StepTooLarge, match=r"hardware\.fsdp: true"):
            make_reference(context, world.streams(), world.start(**smallest))


def test_no_chunk_of_an_earlier_reference_is_left(world, monkeypatch):
    with monkeypatch.context() as dying:
        dies_at(dying, 2, after=True)
        with pytest.raises(Died):
            make(world)
    with world.context() as context:
        assert context.run.store.list("tiny/reference/")
        make_reference(context, world.streams(), world.start(model_of_the_world(1)))
        assert not context.run.store.list("tiny/reference/")


# ---------------------------------------------------------------- the first step


def compare(start, stream):
    check_reference(start.model, first_batch(start, stream), start.plan, "prefer")


def test_the_stored_numbers_are_those_of_the_first_step(world):
    bound = make(world)
    compare(world.start(), bound.splits["train"].in_stream(world.streams()["train"]))


def shifted(bound, streams):
    """Each row has the numbers of the next one, as far as it has as many."""
    train, found = streams["train"], bound.splits["train"]
    rows = [found.of(number) for number in range(train.total_rows)]

    def of(place):
        number = train.number_of(place)
        same = [row for row in rows[number + 1 :] + rows[:number] if len(row) == len(rows[number])]
        return same[0]

    return train.with_references(of)


def of_the_other_side(bound, streams):
    train, found = streams["train"], bound.splits["train"]

    def of(place):
        pairs = np.array(found.of(train.number_of(place))).reshape(-1, 2)
        return pairs[:, ::-1].flatten().tolist()

    return train.with_references(of)


@pytest.mark.parametrize("mistake", [shifted, of_the_other_side])
def test_numbers_of_other_sequences_are_refused_before_the_first_step(world, mistake):
    with pytest.raises(BadInput, match="these reference numbers are not of these weights"):
        compare(world.start(), mistake(make(world), world.streams()))


def test_numbers_of_other_weights_are_refused_before_the_first_step(world):
    bound, trained = make(world), model_of_the_world()
    with torch.no_grad():
        trained.blocks[0].attention.q_proj.weight += 0.01
    stream = bound.splits["train"].in_stream(world.streams()["train"])
    with pytest.raises(BadInput, match="are not of these weights"):
        compare(world.start(trained), stream)


def test_the_numbers_of_held_out_rows_do_not_fit_training_rows(world):
    bound, train = make(world), world.streams()["train"]
    with pytest.raises(BadInput, match="numbers for 4 rows, and the data has 10 rows"):
        bound.splits["held_out"].check(train.total_rows, "here")


def test_a_model_that_predicts_nan_is_no_reference(world):
    broken = model_of_the_world()
    with torch.no_grad():
        broken.norm.weight.fill_(float("nan"))
    with world.context() as context, pytest.raises(BadInput, match=r"can't be a reference.*nan"):
        make_reference(context, world.streams(), world.start(broken))
