"""A family's training ends with the same weights, whatever interrupts it or shares the work."""

import json
from collections import defaultdict

import pytest
import torch
from safetensors.torch import load_file

from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.train.side_copy import SideCopy
from pion.train.trainer import TrainState
from pipeline.state.checkpoints.restore import load_folder, newest_good
from pipeline.state.checkpoints.snapshot import Snapshot, map_extents
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.state.workspace import Workspace
from tests.families.families import FAMILIES
from tests.families.training import (
    DIGEST,
    KILLED_AFTER,
    STAGE,
    STEPS,
    TWO_WORKERS,
    kill_and_pair,
    read_state,
    train,
    trainer,
    write_state,
)
from tests.support.late_streams import LateStreams

# By default, some families are killed, and others shared between two workers. Only these are saved
# next to a step, too.
KILLED = ("tachyon",)
SHARED = ("daisy", "pilon")


def in_soak(soak):
    """Return all families as parameters, of which these are for soak tests."""
    return [pytest.param(n, marks=pytest.mark.soak) if n in soak else n for n in FAMILIES]


@pytest.fixture(scope="module")
def selected(request):
    """The families that each test was selected for, by the name of its function."""
    found = defaultdict(list)
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.path == request.path:
            found[item.originalname].append(item.callspec.params["name"])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def unbroken(folder, selected):
    """The weights of each family after all steps in this process.

    `folder` then has the state that the pair of processes continues from.
    """
    weights = {}
    for name in dict.fromkeys(selected[BY_KILL] + selected[BY_PAIR] + selected[BY_COPY]):
        training = trainer(FAMILIES[name], folder)
        training.side_copy = SideCopy(LateStreams())
        train(training, TWO_WORKERS[0])
        state, memory = training.state(), Snapshot()
        write_state(state, folder / "before" / name)
        memory.take(state.model, state.optimizer, state.meta, state.side_copy)
        train(training, STEPS)
        for file, content in map_extents(memory.fd, memory.extents).items():
            (folder / "before" / name / f"next-to-a-step-{file}").write_bytes(content)
        memory.close()
        weights[name] = dict(training.model.state_dict())
        training.close()
    return weights


@pytest.fixture(scope="module")
def others(unbroken, folder, selected):
    """The same folder, with what the killed processes and the pair of processes left."""
    kill_and_pair(folder, selected[BY_KILL], selected[BY_PAIR])
    return folder


@pytest.mark.parametrize("name", in_soak(FAMILIES.keys() - KILLED))
def test_a_process_killed_with_sigkill_is_continued_to_the_same_bits(name, unbroken, others):
    run = RunState(FileStore(others / "runs"), name)
    found = newest_good(Workspace(run.store, name), run.read(), STAGE, DIGEST)
    saved = load_folder(found.folder)
    training = trainer(FAMILIES[name], others)
    with torch.no_grad():
        for weight in training.model.parameters():
            weight.add_(1.0)  # so that each weight must come from the checkpoint
    training.load(TrainState(saved.model, saved.optimizer, saved.state))
    assert training.step in (2, 4)
    assert training.step < KILLED_AFTER
    train(training, STEPS)
    training.close()
    for weight, tensor in training.model.state_dict().items():
        assert torch.equal(tensor, unbroken[name][weight]), weight


@pytest.mark.parametrize("name", in_soak(FAMILIES.keys() - KILLED - set(SHARED)))
def test_a_save_that_copies_next_to_a_step_has_the_bits_from_before_it(name, unbroken, folder):
    for file in ("model.safetensors", "optimizer.safetensors"):
        before = load_file(folder / "before" / name / file)
        copied = load_file(folder / "before" / name / f"next-to-a-step-{file}")
        assert before.keys() == copied.keys()
        for tensor, value in before.items():
            assert torch.equal(copied[tensor], value), tensor
            assert copied[tensor].dtype == value.dtype


@pytest.mark.parametrize("name", in_soak(FAMILIES.keys() - SHARED))
def test_one_worker_then_two_then_one_train_on_the_same_rows_to_the_same_weights(
    name, unbroken, others
):
    """The weights differ only by the order in which gradients are added up."""
    after = others / "after" / name
    training = trainer(FAMILIES[name], others)
    training.load(read_state(after))
    rows = json.loads((after / "rows.json").read_text()) + train(training, STEPS)
    training.close()
    assert rows == [[4 * step, 4 * step + 4] for step in range(TWO_WORKERS[0], STEPS)]
    for weight, tensor in training.model.state_dict().items():
        expected, apart = unbroken[name][weight], FAMILIES[name].apart
        torch.testing.assert_close(tensor, expected, rtol=0, atol=apart, msg=weight)


BY_KILL = test_a_process_killed_with_sigkill_is_continued_to_the_same_bits.__name__
BY_COPY = test_a_save_that_copies_next_to_a_step_has_the_bits_from_before_it.__name__
BY_PAIR = test_one_worker_then_two_then_one_train_on_the_same_rows_to_the_same_weights.__name__


@pytest.mark.parametrize(
    ("name", "structures"),
    [
        pytest.param("pion", 1, marks=pytest.mark.soak),
        pytest.param("tachyon", 1, marks=pytest.mark.soak),
        ("daisy", 4),
        pytest.param("gated", 1, marks=pytest.mark.soak),
    ],
)
def test_layers_of_one_structure_share_one_compilation(name, structures, compilations):
    """Each layer of a tiny Daisy differs from the others in what it reads or in its window."""
    config = FAMILIES[name].config(n_layers=4)
    model = Decoder(config)
    for seed in range(2):
        torch.manual_seed(seed)
        tokens = torch.randint(0, config.vocab_size, (2, config.seq_len))
        documents = torch.randint(0, 2, tokens.shape).cumsum(dim=1)
        losses = model.losses(
            tokens, tokens, documents=documents, options=StepOptions(compiled=True)
        )
        (losses.ce + losses.aux).backward()
    assert len(compilations) == structures
