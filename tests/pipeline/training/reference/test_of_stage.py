"""A stage computes its reference with the model that it starts from, once for all runs of a store.
A stage that resumes has the numbers that it has learned with, and says what differs."""

import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pion.config.lora import Adapter, BaseModel, Lora
from pion.errors import BadInput, PionError
from pion.model.lora_projections import adapted, additions, merge
from pion.train.reference import check_reference, sums_of
from pion.train.settings import ComputePlan
from pipeline.console.messages import Note, Phase, PrepareProgress
from pipeline.state.head import REFERENCE
from pipeline.training.reference import compute, of_stage
from pipeline.training.reference.of_stage import with_reference
from pipeline.training.stage_model import StageModel
from tests.support.reference_world import (
    Threads,
    World,
    begin,
    model_of_the_world,
    numbers_of,
)

PLAN = ComputePlan(micro_batch=2, threads=1)


def resume(world, start=None, checkpoint=None):
    """Resume a stage, from a checkpoint in a folder; return its reference and what is said."""
    world.said.clear()
    saved = None if checkpoint is None else SimpleNamespace(folder=checkpoint)
    with world.context() as context:
        start = start or world.start()
        found, _ = with_reference(context, world.streams(), start, saved, resumes=True)
    return found, [said.text for said in world.said if isinstance(said, Note)]


def passes(world):
    """Return how many passes there were."""
    return sum(isinstance(message, Phase) for message in world.said)


# ---------------------------------------------------------------- one pass for many runs


def test_a_stage_that_begins_makes_the_numbers_and_head_names_them(world):
    with world.context() as context:
        start = world.start()
        begin(context, world.streams(), start)
        _, key, folder = context.run.read().data[REFERENCE].split("/")
        assert not context.run.store.list("tiny/reference/")
    described = json.loads((world.folder / f"runs/_data/{key}/{folder}/reference.json").read_text())
    assert (described["key"], described["dtype"]) == (key, "float32")
    assert described["weights"] == start.weights_sha256()


def test_another_run_of_the_store_needs_no_second_pass(world):
    first = world.make("first")
    world.said.clear()
    assert world.make("second").record == first.record
    assert not [m for m in world.said if isinstance(m, Phase | PrepareProgress)]


@pytest.mark.parametrize(
    "other",
    [{"model": model_of_the_world(1)}, {"dtype": "bfloat16"}],
    ids=["weights", "dtype"],
)
def test_other_weights_and_another_dtype_need_their_own_numbers(world, other):
    """Also in a run that begins the stage again. Both stay in the store."""
    first, second = world.make(), world.make(**other)
    assert world.make("third").record == first.record != second.record
    assert passes(world) == 2
    assert resume(world)[0].record == second.record


def test_how_a_machine_divides_the_work_needs_no_other_numbers(world):
    first = world.make("first")
    assert world.make("second", micro_batch=1).record == first.record


# ---------------------------------------------------------------- a stage that resumes


@pytest.mark.parametrize(
    "start",
    [
        lambda: StageModel(model_of_the_world(), PLAN),
        lambda: StageModel(model_of_the_world(1), PLAN),  # trained: nobody has its first weights
        lambda: by_lora(model_of_the_world()),
    ],
    ids=["the same", "trained", "LoRA"],
)
def test_a_stage_resumes_with_its_numbers_without_a_word(world, start):
    first = world.make()
    found, said = resume(world, start())
    assert found.record == first.record
    assert said == []
    assert not passes(world)


def test_a_checkpoint_of_other_numbers_is_refused(world):
    """Else its trained weights would become its reference."""
    path = world.folder / "reference.json"
    path.write_bytes(world.make().record)
    resume(world, checkpoint=world.folder)
    for content in (b"{}", None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(PionError, match=r"other numbers of a reference .* --redo prefer"):
            resume(world, checkpoint=world.folder)


def test_a_stage_that_resumes_without_numbers_is_refused(world):
    with pytest.raises(PionError, match=r"no reference data.*can't continue.*--redo prefer"):
        resume(world)


@pytest.mark.parametrize(
    ("changes", "words", "back"),
    [
        (
            {"dtype": "bfloat16"},
            "hardware.dtype was float32 and is bfloat16",
            "hardware.dtype=float32",
        ),
        (
            {"dtype": "bfloat16", "residual": "bfloat16"},
            "is bfloat16, hardware.residual was float32 and is bfloat16",
            "hardware.dtype=float32 hardware.residual=float32",
        ),
    ],
)
@pytest.mark.parametrize("lora", [False, True])
def test_another_dtype_than_that_of_the_reference_is_said(world, changes, words, back, lora):
    """With LoRA, whose base is compared, the numbers may differ by more then."""
    world.make()
    _, (said,) = resume(world, (by_lora if lora else world.start)(model_of_the_world(), **changes))
    assert said.startswith("warning: prefer resumes with a reference")
    assert words in said
    assert "stay as they are" in said
    assert said.endswith(f"continue with {back}")


# ---------------------------------------------------------------- damaged numbers


def damage(world, wrong):
    """Damage the numbers of held-out rows in the store."""
    (path,) = (world.folder / "runs/_data").glob("*/*/held_out/0/shard_00000.reference.npy")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.unlink()  # other names may be links to the same file
    if wrong == "gone":
        shutil.rmtree(path.parents[2])
    elif wrong == "pipe":
        os.mkfifo(path)
    elif wrong == "unlisted":  # the first rows stay: they are compared with the model
        np.save(path, np.load(io.BytesIO(data)) - 1)
        files = path.parents[2] / ".files.json"
        known = json.loads(files.read_bytes())
        del known["files"][path.relative_to(files.parent).as_posix()]
        files.unlink()
        files.write_text(json.dumps(known))
    elif wrong != "missing":
        path.write_bytes(data if wrong == "flipped" else data[:-8])


@pytest.mark.parametrize("wrong", ["flipped", "shorter", "missing", "gone", "pipe", "unlisted"])
def test_damaged_numbers_end_a_stage_that_resumes_and_one_that_begins_computes_them(world, wrong):
    first = world.make()
    damage(world, wrong)
    with pytest.raises(PionError, match="--redo prefer"):
        resume(world)
    for name in ("tiny", "another", "third"):
        assert world.make(name).record == first.record
    assert passes(world) == 1  # since the stage was to resume
    assert any("computed again" in str(said) for said in world.said)


# ---------------------------------------------------------------- the first step


def test_numbers_of_another_model_are_not_used(world, monkeypatch):
    """A hash of weights can't tell everything: a card may compute otherwise."""
    with monkeypatch.context() as wrong:
        wrong.setattr(compute, "sums_of", lambda *given: [[-3.0] * len(r) for r in sums_of(*given)])
        with pytest.raises(
            BadInput, match=r"not of these weights.*does not compute the same twice"
        ):
            world.make()
    first = world.make()
    assert passes(world) == 2
    assert numbers_of(first.streams["train"])[0][0] != -3.0


def shifted(rows):
    """Each row has the numbers of the next one with as many, if there is one."""
    return [
        next((row for row in rows[n + 1 :] + rows[:n] if len(row) == len(rows[n])), rows[n])
        for n in range(len(rows))
    ]


@pytest.mark.parametrize(
    "mistake",
    [shifted, lambda rows: [np.array(row).reshape(-1, 2)[:, ::-1].ravel() for row in rows]],
    ids=["of other rows", "of the other side"],
)
def test_numbers_of_other_sequences_are_refused_before_the_first_step(world, mistake):
    stream = world.make().streams["train"]
    check_reference(model_of_the_world(), stream.batch([0, 1]), PLAN, "prefer")
    rows = mistake(numbers_of(stream))
    other = stream.with_references(lambda place: rows[stream.number_of(place)])
    with pytest.raises(BadInput, match="these reference numbers are not of these weights"):
        check_reference(model_of_the_world(), other.batch([0, 1]), PLAN, "prefer")


def test_no_rank_computes_before_all_have_read_their_rows(world, monkeypatch):
    """Ranks of a sharded model would wait for the weights of one that can't read."""
    world.make()
    other = World(world.folder / "other")
    shutil.copytree(world.folder / "rows", other.folder / "rows")
    damaged = other.streams()
    for path in (other.folder / "rows/train").glob("shard_0000?.npy"):
        path.write_bytes(b"")
    threads, computed = Threads(2), list[str]()
    monkeypatch.setattr(of_stage, "check_reference", lambda *given, **more: computed.append("one"))

    def refusal(rank):
        streams = damaged if rank == 1 else world.streams()
        start = by_lora(model_of_the_world())
        with (
            world.context(group=threads.group(rank)) as context,
            pytest.raises(PionError) as refused,
        ):
            with_reference(context, streams, start, None, resumes=True)
        return str(refused.value)

    with ThreadPoolExecutor(2) as pool:
        reasons = list(pool.map(refusal, range(2)))
    assert reasons == [reasons[0]] * 2
    assert "shard_0000" in reasons[0]
    assert not computed


# ---------------------------------------------------------------- LoRA


def by_lora(base, tensors=None, **plan):
    lora = Lora(rank=2)
    model = adapted(base, lora, seed=0, dtype=torch.float32, tensors=tensors)
    settings = {"micro_batch": 2, "threads": 1} | plan
    adapter = Adapter(lora, BaseModel("the base", "0" * 64))
    return StageModel(model, ComputePlan(**settings), adapter=adapter)


def of_sft():
    """Return additions that change the model."""
    tensors = additions(by_lora(model_of_the_world()).model)
    draw = torch.Generator().manual_seed(3)
    return {name: 0.5 * torch.randn(one.shape, generator=draw) for name, one in tensors.items()}


def test_lora_does_not_resume_on_another_base(world):
    world.make()
    with pytest.raises(PionError, match="these reference numbers are not of these") as refused:
        resume(world, by_lora(model_of_the_world(1)))
    said = str(refused.value)
    assert "The checkpoints are safe" in said
    assert "--redo prefer" in said


def test_lora_that_begins_with_additions_has_their_model_as_its_reference(world):
    start = by_lora(model_of_the_world(), of_sft())
    with world.context() as context:
        begin(context, world.streams(), start)
    assert resume(world, by_lora(model_of_the_world(), of_sft()))[1] == []
    with pytest.raises(PionError, match="these reference numbers are not of these weights"):
        resume(world, by_lora(model_of_the_world()))  # the base alone
    assert resume(world, by_lora(merge(start.model)))[1] == []


def test_other_additions_have_another_reference():
    changed, alone = by_lora(model_of_the_world(), of_sft()), by_lora(model_of_the_world())
    assert alone.weights_sha256() == "0" * 64  # as before there were such additions
    assert changed.weights_sha256() != alone.weights_sha256()
