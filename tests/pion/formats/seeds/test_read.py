"""A damaged or hostile checkpoint of any family is refused by name, and runs nothing."""

import os
import pickle
import shlex

import pytest
import torch

from pion.errors import BadInput
from pion.formats.seeds import import_seed
from pion.formats.seeds.read import NOT_READ
from tests.paths import SEEDS
from tests.support.seed_files import read_seed, tensors_of, write_seed

# One of each family by default. The others are older or further forms of the same.
CHECKPOINTS = ("pion_nocap", "tachyon_moe", "daisy", "pilon_ternary")
MORE = ("daisy_old", "daisy_tied_init", "pilon_tiered")
EMBEDDINGS = ("embed.weight", "lm_head_w", "token_embedding.weight")


@pytest.fixture(
    params=[*CHECKPOINTS, *(pytest.param(name, marks=pytest.mark.soak) for name in MORE)]
)
def seed(request):
    return SEEDS / f"{request.param}_ckpt.pt"


def refusal(path, content):
    """Return the one message with which `content`, saved at `path`, is refused."""
    write_seed(content, path)
    with pytest.raises(BadInput) as error:
        import_seed(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_a_truncated_file_is_refused(seed, tmp_path, share):
    whole = seed.read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadInput, match=r"x\.pt is .*damaged"):
        import_seed(tmp_path / "x.pt")


class Attack:
    """Creates the victim when unpickled."""

    def __init__(self, victim):
        self.command = f"touch {shlex.quote(str(victim))}"

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("where", ["config", "model", "hparams", "best_val"])
def test_a_file_that_runs_a_command_is_refused_and_nothing_runs(seed, tmp_path, where):
    victim = tmp_path / "victim"
    content = read_seed(seed) | {where: Attack(victim)}
    assert "Pion did not load the file" in refusal(tmp_path / "x.pt", content)
    assert not victim.exists()
    # The file is a working attack: Python's own pickle would run it.
    pickle.loads(pickle.dumps(Attack(victim)))  # noqa: S301
    assert victim.exists()


def test_a_tensor_without_a_name_and_a_setting_that_is_a_tensor_are_refused(seed, tmp_path):
    content = read_seed(seed)
    message = refusal(tmp_path / "x.pt", content | {"model": {0: torch.zeros(1)}})
    assert "it has no tensors under 'model'" in message
    content |= {"config": None, "hparams": {"tied_embeddings": torch.zeros(2)}}
    assert "the setting 'tied_embeddings' is a Tensor" in refusal(tmp_path / "x.pt", content)


NOT_ARRAYS = {
    "sparse": (lambda tensor: tensor.float().to_sparse(), "asks for 'torch._utils._rebuild_sparse"),
    "meta": (lambda tensor: tensor.to("meta"), "asks for 'torch._utils._rebuild_meta_tensor"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "asks for 'torch.ComplexFloatStorage'"),
    "of whole numbers": (lambda tensor: tensor.to(torch.int64), "is not an array of real numbers"),
}
WRONG_SHAPES = {
    "a number": torch.zeros(()),
    "empty": torch.zeros(0),
    "empty matrix": torch.zeros(0, 0),
    "a vector": torch.zeros(3),
    "four dimensions": torch.zeros(1, 1, 1, 1),
}


@pytest.mark.parametrize("kind", NOT_ARRAYS)
def test_a_tensor_that_is_no_array_of_real_numbers_is_refused(seed, tmp_path, kind):
    content = read_seed(seed)
    tensors = tensors_of(content)
    name = next(iter(tensors))
    change, why = NOT_ARRAYS[kind]
    tensors[name] = change(tensors[name])
    assert why in refusal(tmp_path / "x.pt", content)


def test_a_tensor_that_claims_more_than_the_file_has_is_refused_before_it_is_copied(seed, tmp_path):
    content = read_seed(seed)
    name = next(iter(tensors_of(content)))
    tensors_of(content)[name] = torch.zeros(1).expand(10**7, 10**6)
    assert f"{name} claims shape (10000000, 1000000)" in refusal(tmp_path / "x.pt", content)


@pytest.mark.parametrize("shape", WRONG_SHAPES)
def test_a_tensor_of_another_shape_is_refused(seed, tmp_path, shape):
    content = read_seed(seed)
    tensors = tensors_of(content)
    embedding = next(name for name in EMBEDDINGS if name in tensors)
    read = [name for name in tensors if not any(mark in name for mark in NOT_READ)]
    for name in [embedding, *read[1:14:4]]:
        right = tensors[name]
        tensors[name] = WRONG_SHAPES[shape]
        refusal(tmp_path / "x.pt", content)
        tensors[name] = right


def test_a_daisy_wee_with_more_layers_than_the_file_has_is_refused_before_it_is_built(tmp_path):
    content = read_seed(SEEDS / "daisy_ckpt.pt")
    content["model"]["scalars"] = torch.zeros(5 * 10**6)
    assert "the weights have no blocks.8.mlp.fc_w" in refusal(tmp_path / "x.pt", content)
