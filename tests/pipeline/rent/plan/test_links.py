"""What connects the cards of a machine: every type that can be rented has a link with a source."""

from __future__ import annotations

import pytest

from pipeline.rent.plan.gpus import GPU_TYPES
from pipeline.rent.plan.links import BETWEEN_MACHINES, LINKS, link_of


def test_every_link_has_a_speed_that_a_card_can_have_and_says_who_says_so() -> None:
    assert LINKS.keys() <= GPU_TYPES.keys(), "only types that the plan knows"
    for gpu, link in LINKS.items():
        assert 1 < link.gb_per_second < 1000, gpu
        assert link.source, gpu


def test_nvswitch_is_for_sxm_modules_only() -> None:
    assert link_of("H100-SXM").gb_per_second == 370
    for name in ("H100", "A100", "A100-80GB"):
        assert link_of(name).name.startswith("PCI Express"), "some clouds rent cards in slots"


@pytest.mark.parametrize("gpu", ["A10G", "MI300X"])
def test_a_card_whose_link_is_unknown_has_the_slowest_and_the_link_says_so(gpu: str) -> None:
    link = link_of(gpu)
    assert link.gb_per_second == min(known.gb_per_second for known in LINKS.values())
    assert link.name == "unknown, as PCI Express 3.0 x16"
    assert link.source == f"the link of a {gpu} is unknown: assumed to be the slowest known"


def test_cards_of_several_machines_are_as_slow_as_what_is_between_the_machines() -> None:
    assert link_of("H100-SXM", between_machines=True) is BETWEEN_MACHINES
    assert link_of("T4", between_machines=True) is BETWEEN_MACHINES
