"""An older transformers, in its own environment, loads our exports and computes the same logits.

`pytest -m soak` runs this, because it downloads packages. The environment has its own transformers
and what depends on its version; torch and all other packages are those of this environment.
"""

import importlib.metadata
import shutil
import site
import sys

import pytest
import torch

from pion.config.parts import Experts
from pion.data.tokens.tokenizer import train_bpe
from pion.formats.export import export_model
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config
from tests.support.waiting import run_to_end

PACKAGES = ["transformers==4.57.*", "tokenizers>=0.22,<0.23", "huggingface-hub>=0.34,<1.0"]
TOKENS = torch.arange(48).view(1, 48)
# Prints transformers' version, the class it chose, and the greatest difference of the logits.
COMPARE = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
given = torch.load(sys.argv[2], weights_only=True)
with torch.inference_mode():
    logits = model(given["tokens"]).logits
# An export has no rows for ids that its tokenizer can't produce.
difference = float((logits - given["logits"][..., : logits.shape[-1]]).abs().max())
print("compared", transformers.__version__, type(model).__name__, difference)
"""

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment with transformers 4.57."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed, so there is no environment with an older transformers")
    folder = tmp_path_factory.mktemp("older") / "venv"
    run_to_end([uv, "venv", "--python", sys.executable, folder], check=True)
    interpreter = folder / "bin" / "python"
    install = [uv, "pip", "install", "--python", interpreter, "--no-deps", *PACKAGES]
    # In another folder: here uv reads our pyproject.toml, which pins other versions.
    done = run_to_end(install, cwd=folder)
    if done.returncode:
        pytest.skip(f"transformers 4.57 could not be installed: {done.stderr.strip()}")
    (packages,) = folder.glob("lib/python*/site-packages")
    # Entries of a .pth file come after the environment's own packages.
    (packages / "ours.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    return interpreter


SCALING = {"factor": 4.0, "original_max_position_embeddings": 16}
BIASED = {"qk_norm": False, "qkv_bias": True}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "Qwen3ForCausalLM"),
        ({"rope_theta": 1e6}, "Qwen3ForCausalLM"),
        ({"experts": Experts(n=5, top_k=2, shared=2, d_shared=24)}, "Qwen3MoeForCausalLM"),
        ({"heads": {"qk_norm": False}, "rope_scaling": SCALING}, "LlamaForCausalLM"),
        ({"heads": BIASED, "rope_theta": 1e6, "imported": True}, "Qwen2ForCausalLM"),
    ],
)
def test_transformers_4_computes_the_same_logits(tmp_path, python, changes, name):
    train_bpe(["some text to learn bytes from"], 270).save(tmp_path / "tokenizer.json")
    torch.manual_seed(0)
    ours = Decoder(tiny_config(vocab_size=280, seq_len=64, init_std=0.2, **changes)).eval()
    export_model(ours, tmp_path / "tokenizer.json", tmp_path / "export", chat=False)
    with torch.inference_mode():
        logits = ours(TOKENS)
    torch.save({"tokens": TOKENS, "logits": logits}, tmp_path / "given.pt")
    command = [python, "-c", COMPARE, tmp_path / "export", tmp_path / "given.pt"]
    done = run_to_end(command, check=True, cwd=tmp_path)
    _, version, chosen, difference = done.stdout.splitlines()[-1].split()
    print(f"transformers {version}, {chosen}: max |Δlogit| {float(difference):.1e}")
    assert version.startswith("4.57.")
    assert not importlib.metadata.version("transformers").startswith("4.")
    assert chosen == name
    assert float(difference) <= 1e-5
