"""A newer FlashAttention computes only where it is installed, fits the card, and is right there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pion.train import flash_attention
from pion.train.flash_attention import OWN, use_newest_flash_attention

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")


class Machine:
    """A pretended card and what torch's registry of FlashAttention does there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.installed: set[str] = set()
        self.activated: list[str] = []
        self.restored = 0
        self.cudnn = True
        self.refusal: Exception | None = None
        self.wrong: Callable[[Tensor], Tensor] = lambda result: result
        registry = SimpleNamespace(
            activate_flash_attention_impl=self._activate,
            restore_flash_attention_impl=self._restore,
        )
        monkeypatch.setattr(flash_attention, "nn", SimpleNamespace(attention=registry))
        monkeypatch.setattr(flash_attention, "find_spec", self._find)
        both_passes = flash_attention._both_passes

        def here(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
            results = both_passes(CPU, dtype)
            return [self.wrong(r) if dtype == torch.bfloat16 else r for r in results]

        monkeypatch.setattr(flash_attention, "_both_passes", here)
        monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", self._cudnn)
        self._monkeypatch = monkeypatch
        self.capability(9)

    def capability(self, major: int) -> None:
        monkeypatch = self._monkeypatch
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))

    def _find(self, name: str) -> object | None:
        if "." in name and not any(found.startswith("flash_attn.") for found in self.installed):
            raise ModuleNotFoundError(name)
        return object() if name in self.installed else None

    def _activate(self, version: str) -> None:
        self.activated.append(version)
        if self.refusal is not None:
            raise self.refusal

    def _restore(self, _raise_warn: bool = True) -> None:
        assert not _raise_warn
        self.restored += 1

    def _cudnn(self, enabled: bool) -> None:
        self.cudnn = enabled


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    use_newest_flash_attention.cache_clear()
    yield Machine(monkeypatch)
    use_newest_flash_attention.cache_clear()


def used(device: torch.device = CARD, **how: Any) -> str:
    return use_newest_flash_attention(device, **{"deterministic": False, **how})


@pytest.mark.parametrize(
    ("major", "installed", "version"),
    [
        (9, {"flash_attn_interface"}, "FA3"),
        (9, {"flash_attn_interface", "flash_attn.cute"}, "FA3"),
        (9, {"flash_attn.cute"}, "FA4"),
        (10, {"flash_attn_interface", "flash_attn.cute"}, "FA4"),
        (10, {"flash_attn_interface"}, None),
        (8, {"flash_attn_interface", "flash_attn.cute"}, None),
        (9, set(), None),
    ],
)
def test_the_version_is_one_that_is_installed_and_has_kernels_for_the_card(
    machine: Machine, major: int, installed: set[str], version: str | None
) -> None:
    machine.capability(major)
    machine.installed = installed
    words = used()
    assert machine.activated == ([] if version is None else [version])
    assert words == (OWN if version is None else f"FlashAttention {version[2]} computes attention")
    assert machine.cudnn == (version is None)  # which torch would prefer


def test_it_is_decided_once(machine: Machine) -> None:
    machine.installed = {"flash_attn_interface"}
    assert used() == used()
    assert machine.activated == ["FA3"]


@pytest.mark.parametrize("wrong", [lambda r: r * 1.1, lambda r: r * float("nan")])
def test_a_version_that_is_wrong_here_is_not_used(
    machine: Machine, wrong: Callable[[Tensor], Tensor]
) -> None:
    machine.installed, machine.wrong = {"flash_attn_interface"}, wrong
    words = used()
    assert (machine.restored, machine.cudnn) == (1, True)
    assert words.startswith(f"{OWN}; flash_attn_interface is installed and not used: its results")


def test_a_package_that_does_not_fit_this_torch_is_not_used(machine: Machine) -> None:
    machine.installed = {"flash_attn_interface", "flash_attn.cute"}
    machine.refusal = ImportError("undefined symbol: _ZN3c10\nmore")
    words = used()
    assert (machine.activated, machine.restored) == (["FA3", "FA4"], 2)
    assert "flash_attn_interface is installed and not used: ImportError: undefined symbol" in words
    assert "\n" not in words


def test_nothing_changes_on_a_cpu_nor_where_results_must_be_deterministic(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.installed = {"flash_attn_interface"}
    assert used(CPU) == OWN
    assert used(deterministic=True) == OWN
    older = SimpleNamespace(attention=SimpleNamespace())
    monkeypatch.setattr(flash_attention, "nn", older)
    assert used() == OWN  # a torch without the function
    assert machine.activated == []
    assert hasattr(nn.attention, "SDPBackend")


def test_the_comparison_finds_no_difference_of_torch_from_itself() -> None:
    shares = flash_attention._largest_share(flash_attention._both_passes(CPU, torch.bfloat16), CPU)
    assert 0 < shares < flash_attention.LIMIT / 2
