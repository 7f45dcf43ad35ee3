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


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(name, marks=pytest.mark.soak if name in ("empty", "a vector") else ())
        for name in WRONG_SHAPES
    ],
)
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


HOT = "primitive_banks.fc1_banks.early.hot_indices"
WARM = HOT.replace("hot", "warm")
BANK = "primitive_banks.fc2_banks.late"
ROUTER = "layers.0.ffn.router.router"
TWICE = "_orig_mod.embed.weight"
# A checkpoint, tensors that are replaced or added (None: missing), and what is said.
LAYOUTS = [
    (
        "pion_nocap",
        {"layers.0.moe.gate.weight": torch.zeros(2)},
        "mixed: layers.0.ffn.w1.weight is a Pion's, and layers.0.moe.gate.weight is a ",
    ),
    ("pion_nocap", {"layers.1.norm2.weight": None}, "have no blocks.1.feedforward_norm.weight"),
    ("pion_nocap", {"embed.weight": None}, "have no embed.weight: this is not a Pion model"),
    ("pion_nocap", {"layers.1.ffn.w3.weight": torch.zeros(7, 48)}, "up_proj.weight has shape (7, "),
    ("pion_nocap", {"lm_head.weight": torch.zeros(131, 48)}, "should be tied"),
    ("tachyon_moe", {"layers.0.moe.w1": None}, "no layers.0.moe.w1 of shape"),
    ("tachyon_moe", {"layers.1.moe.w2": None}, "have no blocks.1.feedforward.down_proj"),
    ("tachyon_moe", {"layers.1.moe.bias": torch.zeros(1)}, "unexpected tensor layers.1.moe.bias"),
    ("tachyon_moe", {"tok_emb.weight": torch.zeros(1)}, "this is a Lepton. A Lepton's forward"),
    ("tachyon_moe", {f"{BANK}.A": torch.zeros(1)}, "the tensors are mixed"),
    ("tachyon_moe", {TWICE: torch.zeros(1)}, f"{TWICE[10:]} and {TWICE} differ"),
    ("daisy", {"scalars": None}, "no `scalars`, 5 for each layer"),
    ("daisy", {"scalars": torch.zeros(5 * 10**6)}, "the weights have no blocks.8.mlp.fc_w"),
    ("daisy", {"blocks.3.mlp.fc_w": None}, "the weights have no blocks.3.mlp.fc_w"),
    ("daisy", {"blocks.0.attn.qkvo_w": torch.zeros(3, 32, 32)}, "shape (3, 32, 32), not (4, 32"),
    ("daisy", {"value_embeds.3.weight": torch.zeros(131, 32)}, "layer 3 has no attention"),
    ("daisy", {"blocks.0.attn.bias": torch.zeros(1)}, "unexpected tensor blocks.0.attn.bias"),
    ("daisy", {"layers.0.moe.w1": torch.zeros(1)}, "is a Tachyon's, and lm_head_w is a Daisy"),
    ("pilon_tiered", {HOT: torch.tensor([0, 1, 2, 9])}, f"{HOT} and its warm_indices"),
    ("pilon_tiered", {HOT: torch.tensor([0, 1, 2, 2])}, f"{HOT} and its warm_indices"),
    ("pilon_tiered", {HOT: torch.tensor([0, 1])}, f"{HOT} and its warm_indices"),
    ("pilon_tiered", {WARM: None}, "warm_indices"),
    ("pilon_tiered", {f"{BANK}.B_warm": None}, f"{BANK}.B_warm"),
    ("pilon_comp", {f"{BANK}.A": None}, f"{BANK}.A"),
    ("pilon_comp", {f"{BANK}.B": None}, f"{BANK}.B"),
    ("pilon_comp", {f"{BANK}.B": torch.zeros(8, 5, 32)}, f"{BANK}.A and {BANK}.B"),
    ("pilon_comp", {"position_embedding.weight": None}, "position_embedding.weight"),
    ("pilon_comp", {"layers.1.ffn.bias": torch.zeros(1)}, "unexpected tensor layers.1.ffn.bias"),
    ("pilon_moe", {f"{ROUTER}.0.weight": torch.zeros(1)}, "whose router has two matrices"),
]


@pytest.mark.parametrize(("name", "change", "why"), LAYOUTS)
def test_other_layouts_are_refused_with_the_tensor_and_the_reason(tmp_path, name, change, why):
    content = read_seed(SEEDS / f"{name}_ckpt.pt")
    for tensor, value in change.items():
        if value is None:
            del tensors_of(content)[tensor]
        else:
            tensors_of(content)[tensor] = value
    assert why in refusal(tmp_path / "x.pt", content)


BANDS = "config.primitive_config.bands"
TOP_K = "config.primitive_config.top_k"
# A checkpoint, where it has a setting, the value there (None may be missing), and what is said.
SETTINGS = [
    ("pilon_comp", BANDS, [{"layers": [0, 1]}], "layer 2 in no band"),
    ("pilon_comp", BANDS, [{"layers": [0]}, {"layers": [2, 3]}], "layer 1 in no band"),
    ("pilon_comp", BANDS, [{"layers": [0, 1]}, {"layers": [1, 2, 3]}], "layer 1 twice"),
    ("pilon_comp", BANDS, [{"layers": [0, 1]}, {"layers": [2, 3, 4]}], "names layer 4"),
    ("pilon_comp", BANDS, "none", "primitives.bands"),
    ("pilon_comp", BANDS, [1, 2], "primitives.bands"),
    ("pilon_comp", TOP_K, 9, "top_k 9 is more than primitives.n 8"),
    ("pilon_comp", TOP_K, None, "primitives.top_k"),
    ("pilon_comp", "config", None, "the file has no config"),
    *(("daisy", "hparams.head_dim", value, "hparams: head_dim") for value in (0, "16", 5, None)),
    ("daisy", "hparams", None, "no hparams, and no published Daisy-Wee has 8 layers"),
]


@pytest.mark.parametrize(("name", "path", "value", "why"), SETTINGS)
def test_settings_that_can_not_be_are_refused_with_the_reason(tmp_path, name, path, value, why):
    content = read_seed(SEEDS / f"{name}_ckpt.pt")
    section, (*parents, setting) = content, path.split(".")
    for parent in parents:
        inner = section[parent]
        section = inner if isinstance(inner, dict) else vars(inner)
    section[setting] = value
    assert why in refusal(tmp_path / "x.pt", content)
