"""Ranks that keep parts of a model train it as one process does, and skip no collective."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch._inductor  # noqa: F401
import torch.distributed as dist

from pion.config.lora import Lora
from pion.errors import BadInput
from pion.formats.model_tensors import SavedTensors
from pion.generation.generate import generate_batch
from pion.model.decoder import Decoder
from pion.model.lazy_lora import lazily_adapted
from pion.model.lazy_weights import lazily_drawn
from pion.model.lora_projections import adapted
from pion.train.hardware import peak_flops
from pion.train.optimizer import muon_rounds
from pion.train.preference import Preference
from pion.train.trainer import ComputePlan, TrainState
from tests.families.families import FAMILIES
from tests.support import pair_rows
from tests.support.ranks import meet, run_ranks
from tests.support.sharded_trainers import STOPPED, apart, make, rows_of, stop_on_rank_1, train
from tests.support.whole_state import same, whole_state

STEPS = 3
# Experts, routers and Muon; banks of primitives and AdamW. test_sharding_families.py has all.
COMPARED = {"tachyon": "muon", "pilon": "adamw"}
FEW_PRIMITIVES = {"n": 2, "rank": 12, "top_k": 2, "bands": [[0], [1]], "diversity_weight": 0.01}


@dataclass(frozen=True)
class Process:
    """One process of the tests: its rank, of how many, and where it has its data."""

    rank: int
    world_size: int
    folder: Path

    def stream(self, name):
        return rows_of(name, self.folder / f"data{self.world_size}-{self.rank}")

    def trainer(self, name="pion", *, stream=None, **changes):
        rows = self.stream(name) if stream is None else stream
        return make(name, rows, world_size=self.world_size, rank=self.rank, **changes)


def follow(process, name, optimizer):
    trainer = process.trainer(name, optimizer=optimizer)
    measured = train(trainer, STEPS)
    state = whole_state(trainer)
    if process.rank == 0:
        torch.save((state.model, state.optimizer), process.folder / f"{name}{process.world_size}")
    return {"measured": measured}


def stop_on_one_rank(process):
    trainer = process.trainer()
    train(trainer, 1)
    stopped = stop_on_rank_1(trainer)
    train(trainer, 1)
    return stopped


def resume(process):
    trainer = process.trainer("tachyon", optimizer="muon")
    train(trainer, 1)
    saved = whole_state(trainer)
    train(trainer, 2)
    resumed = process.trainer("tachyon", optimizer="muon", model=FAMILIES["tachyon"].decoder(9))
    with torch.no_grad():  # a pass that leaves old weights gathered
        resumed.model.hidden(torch.zeros(1, 1, dtype=torch.int64))
    resumed.load(saved)
    read = same(saved, whole_state(resumed))
    train(resumed, 2)
    ends = whole_state(trainer), whole_state(resumed)
    refused = ""
    try:
        resumed.load(TrainState(saved.model, {}, saved.meta))
    except BadInput as error:
        refused = str(error)
    return {"read": read, "same": same(*ends), "step": resumed.step, "refused": refused}


def measure(process):
    """Evaluate and write before, between and after steps; return what was found."""
    trainer, held_out = process.trainer(), process.stream("pion")
    found = {"losses": [], "texts": []}
    for rows in (range(3, 12), range(3, 4), range(12, 16)):
        evaluation = trainer.evaluate(held_out, rows, 2, end_of_text=0)
        found["losses"].append(evaluation.loss)
        with trainer.measuring():
            texts = generate_batch(
                trainer.model, [[1, 2, 3], [4, 5]], stop_ids=[0], max_tokens=4, seed=0
            )
            found["texts"].append(list(texts))
        train(trainer, 1)
    return found


def write_with_other_logits(process):
    """Let the likeliest id be another one on each rank."""
    trainer = process.trainer()
    logits_of = trainer.model.logits

    def changed(hidden):
        logits = logits_of(hidden).clone()
        logits[..., 7 + process.rank] += 1000
        return logits

    with trainer.measuring(), mock.patch.object(trainer.model, "logits", changed):
        texts = generate_batch(trainer.model, [[1, 2, 3], [4, 5]], stop_ids=[0], max_tokens=3)
        return list(texts)


def begin_without_weights(process):
    config = FAMILIES["tachyon"].config()
    torch.manual_seed(5)
    model, weights = lazily_drawn(config)
    later = whole_state(process.trainer("tachyon", model=model, weights=weights))
    with torch.device("meta"):
        empty = Decoder(config)
    filled = process.trainer("tachyon", model=empty, weights=SavedTensors.of(later.model))
    torch.manual_seed(5)
    drawn = Decoder(config).state_dict()
    refused = ""
    try:
        _, less = lazily_drawn(config)
        with torch.device("meta"):
            empty = Decoder(config)
        process.trainer("tachyon", model=empty, weights=less)
    except BadInput as error:
        refused = str(error)
    return {
        "apart": apart(later.model, drawn),
        "filled": apart(whole_state(filled).model, drawn),
        "refused": refused,
    }


def adapt(process):
    model = adapted(FAMILIES["biased"].decoder(0), Lora(rank=4), seed=0, dtype=torch.float32)
    trainer = process.trainer(model=model, lr=1e-2)
    measured = train(trainer, STEPS)
    return {"measured": measured, "names": sorted(whole_state(trainer).model)}


def adapt_a_rounded_base(process):
    """Add LoRA to a base that is kept in bfloat16. Ranks read its weights where they need them."""
    base, weights = FAMILIES["biased"].decoder(0), None
    lora, dtype = Lora(rank=4, base_dtype="bfloat16"), torch.bfloat16
    if process.world_size > 1:
        saved = SavedTensors.of(base.state_dict())
        model, weights = lazily_adapted(base.config, saved, lora, seed=0, dtype=dtype)
    else:
        model = adapted(base, lora, seed=0, dtype=dtype)
    trainer = process.trainer(model=model, weights=weights, lr=1e-2, dtype="bfloat16")
    return {"measured": train(trainer, STEPS), "names": sorted(whole_state(trainer).model)}


def prefer(process):
    """Learn from single answers."""
    torch.manual_seed(process.rank)
    config = pair_rows.CONFIG
    stream = pair_rows.PairRows(pair_rows.random_pairs(20), single=True).as_stream()
    preference = Preference("apo-zero", beta=0.02, unpaired=True)
    trainer = process.trainer(model=Decoder(config), stream=stream, learning=preference)
    measured = train(trainer, 2)
    losses = [
        trainer.evaluate(stream, rows, 2, end_of_text=0).loss for rows in (range(9), range(1))
    ]
    return {"measured": measured, "losses": losses}


def parts(process):
    """Return how much of the weights and moments this rank has."""
    trainer = process.trainer("tachyon", optimizer="muon")
    train(trainer, 1)
    state = trainer.state()
    in_memory = sum(param.numel() for param in trainer.optimizer.params)
    return {
        "saved": sum(piece.values.numel() for piece in state.pieces),
        "all": sum(tensor.numel() for tensor in (*state.model.values(), *state.optimizer.values())),
        "in memory": in_memory,
        "params": trainer.model.num_params(),
    }


CHECKS = {name: partial(follow, name=name, optimizer=kind) for name, kind in COMPARED.items()}
CHECKS |= {"stop": stop_on_one_rank, "resume": resume, "measure": measure, "lora": adapt}
CHECKS |= {"logits": write_with_other_logits, "begin": begin_without_weights, "prefer": prefer}
CHECKS |= {"rounded": adapt_a_rounded_base, "parts": parts}
ALONE = (*COMPARED, "measure", "lora", "rounded", "prefer")


def divide_experts(process):
    """Train 2 experts by Muon in many rounds. 3 ranks divide the rows of each expert."""
    model = FAMILIES["tachyon"].decoder(0, experts={"n": 2, "top_k": 1, "d_shared": 16})
    with mock.patch.object(muon_rounds, "BATCH_ELEMENTS", 9_000):
        trainer = process.trainer("tachyon", optimizer="muon", model=model)
    found = train(trainer, STEPS)
    stacks = [list(param.shape) for param in trainer.optimizer.params if param.ndim == 3]
    return {"measured": found, "shape": stacks[0]}


def divide_primitives(process):
    """Train banks of 2 primitives, save them and read them. Of 3 ranks, one has none of them."""
    model = FAMILIES["pilon"].decoder(0, primitives=FEW_PRIMITIVES)
    trainer = process.trainer("pilon", model=model, phases=())
    found = train(trainer, STEPS)
    saved = whole_state(trainer)
    trainer.load(saved)
    stacks = [list(param.shape) for param in trainer.optimizer.params if param.ndim == 3]
    return {"measured": found, "shape": stacks[0], "read": same(saved, whole_state(trainer))}


def work(rank, folder):
    meet(rank, 3, folder / "meet3")
    process = Process(rank, 3, folder)
    results = {"experts": divide_experts(process), "primitives": divide_primitives(process)}
    dist.destroy_process_group()
    if rank < 2:
        meet(rank, 2, folder / "meet")
        process = Process(rank, 2, folder)
        results |= {name: check(process) for name, check in CHECKS.items()}
        dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def seen(folder):
    """Return the results of each of three processes. Two of them do all checks."""
    peak_flops(torch.device("cpu"), "bfloat16")  # each process would measure it
    run_ranks(work, folder, 3)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


@pytest.fixture(scope="module")
def ranks(seen):
    return seen[:2]


@pytest.fixture(scope="module")
def alone(folder, seen):
    """Return the results of one process that keeps the whole model."""
    process = Process(0, 1, folder)
    found = {name: CHECKS[name](process) for name in ALONE}
    more = {"experts": divide_experts(process), "primitives": divide_primitives(process)}
    return found | more


def assert_close(found, expected):
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected])
    for name in ("tokens", "rows"):
        assert [row[name] for row in found] == [row[name] for row in expected]


def test_one_rank_cannot_keep_a_part():
    with pytest.raises(BadInput, match="sharded"):
        ComputePlan(sharded=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_ranks_follow_one_process(folder, ranks, alone, name):
    """The last micro-batch of rank 0 has no counterpart on rank 1, which computes with it."""
    for rank in ranks:
        assert_close(rank[name]["measured"], alone[name]["measured"])
    ours, one = (torch.load(folder / f"{name}{size}") for size in (2, 1))
    assert apart(ours[0], one[0]) <= 2e-6
    assert apart(ours[1], one[1]) <= 1e-5


def test_a_rank_keeps_its_share_and_saves_each_element_once(ranks):
    found = [rank["parts"] for rank in ranks]
    assert sum(part["saved"] for part in found) == found[0]["all"]
    for part in found:
        assert part["saved"] <= (1 / 2 + 0.01) * part["all"]
        # Gains and routers are on every rank.
        assert part["in memory"] <= (1 / 2 + 0.05) * part["params"]


def test_a_stop_that_one_rank_asks_for_abandons_the_step_on_all(ranks):
    for rank in ranks:
        assert rank["stop"] == STOPPED


def test_ranks_resume_bit_for_bit(ranks):
    for rank in ranks:
        assert rank["resume"]["read"]
        assert rank["resume"]["same"]
        assert rank["resume"]["step"] == 3
        assert "the checkpoint's optimizer state has no tensor" in rank["resume"]["refused"]


def test_more_ranks_than_experts_divide_each_expert(seen, alone):
    experts, rows, cols = alone["experts"]["shape"]
    for process in seen:
        assert process["experts"]["shape"] == [experts, rows // 3, cols]
        assert_close(process["experts"]["measured"], alone["experts"]["measured"])


def test_more_ranks_than_primitives_keep_each_primitive_whole(seen, alone):
    """The optimizer counts the steps of each primitive."""
    _, *whole = alone["primitives"]["shape"]
    found = [process["primitives"] for process in seen]
    assert [each["shape"] for each in found] == [[count, *whole] for count in (1, 1, 0)]
    for each in found:
        assert_close(each["measured"], alone["primitives"]["measured"])
        assert each["read"]


def test_ranks_whose_logits_differ_write_the_same(ranks):
    """Each rank has its own favorite id, as if its GPU rounded otherwise."""
    assert ranks[0]["logits"] == ranks[1]["logits"]
    assert {token for _, token in ranks[0]["logits"]} == {7, None}


def test_ranks_measure_and_write_what_one_process_does(ranks, alone):
    """Some rows leave a rank without a batch, and some without a row."""
    for rank in ranks:
        assert rank["measure"]["losses"] == pytest.approx(alone["measure"]["losses"], abs=1e-5)
        assert rank["measure"]["texts"] == json.loads(json.dumps(alone["measure"]["texts"]))


def test_ranks_begin_with_weights_that_none_of_them_has_whole(ranks):
    for rank in ranks:
        assert rank["begin"]["apart"] == rank["begin"]["filled"] == 0.0
        assert rank["begin"]["refused"].startswith("the weights has no tensor")


@pytest.mark.parametrize("name", ["lora", "rounded"])
def test_ranks_that_share_a_frozen_base_train_its_additions(ranks, alone, name):
    for rank in ranks:
        assert rank[name]["names"] == alone[name]["names"]
        assert_close(rank[name]["measured"], alone[name]["measured"])


def test_ranks_learn_from_preferences_as_one_process_does(ranks, alone):
    """A pass before the gradients, and held-out rows of which rank 1 has fewer, or none."""
    for rank in ranks:
        assert_close(rank["prefer"]["measured"], alone["prefer"]["measured"])
        assert rank["prefer"]["losses"] == pytest.approx(alone["prefer"]["losses"], abs=1e-5)
