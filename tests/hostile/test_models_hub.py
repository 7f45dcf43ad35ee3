"""Hostile repositories on the Hub, through each command that takes a model from there."""

import json
from collections.abc import Callable

import pytest

from tests.hostile.in_process import refused
from tests.hostile.model_folders import DEEP, model_folder
from tests.support.hub_server import hub_server

Files = dict[str, bytes]
COMMANDS = {
    "generate": ("generate", "someone/model", "--prompt", "Return"),
    "chat": ("chat", "someone/model"),
    "import-seed": ("import-seed", "someone/model", "imported"),
}


def settings(**changes) -> Callable[[Files], Files]:
    return lambda files: {
        "config.json": json.dumps(json.loads(files["config.json"]) | changes).encode()
    }


# By what is wrong: the files that differ from an honest repository, and what is said. A downloaded
# model is read as any folder is, so one attack on each file is enough.
ATTACKS = {
    "layers without end": (settings(num_hidden_layers=10**8), "num_hidden_layers is 100000000"),
    "deep settings": (lambda _: {"config.json": DEEP.encode()}, "config.json"),
    "code": (settings(architectures=["Evil"], model_type="evil"), "evil"),
    "a header of a terabyte": (
        lambda files: {
            "model.safetensors": (2**40).to_bytes(8, "little") + files["model.safetensors"]
        },
        "model.safetensors",
    ),
    "a deep tokenizer": (lambda _: {"tokenizer.json": DEEP.encode()}, "tokenizer.json"),
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    folder = model_folder(tmp_path_factory.mktemp("honest"), foreign=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def publish(tmp_path, monkeypatch, honest):
    """Publish a repository that differs from an honest one in these files."""
    monkeypatch.chdir(tmp_path)
    with hub_server() as hub:
        hub.use(monkeypatch, tmp_path / "hf")
        yield lambda files: hub.add_repo("someone/model", "model", honest | files)


# The commands share what reads a model, so one command has every attack, and the others have one.
PAIRS = [(attack, "generate") for attack in ATTACKS]
PAIRS += [("a header of a terabyte", "chat"), ("deep settings", "import-seed")]


@pytest.mark.parametrize(("attack", "command"), PAIRS)
def test_a_hostile_repository_is_refused_with_what_is_wrong(
    attack, command, honest, publish, tmp_path
):
    change, wrong = ATTACKS[attack]
    publish(change(honest))
    message = refused(*COMMANDS[command])
    assert (wrong if command != "import-seed" else "is not a .pt checkpoint") in message
    assert not (tmp_path / "imported").exists()
