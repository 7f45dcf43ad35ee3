"""How fast the cards of a machine exchange data, by the GPU's name in SkyPilot.

A link is counted as the *bus bandwidth* of an all-reduce in nccl-tests: if each of n cards has S
bytes, the sum over the cards takes 2 (n − 1)/n × S / bus bandwidth seconds.

Where a name is used for cards in slots and for SXM modules, it counts as the card in a slot. Cards
in slots are assumed to exchange data through the memory of the CPU: GeForce cards can't send to
each other, and rented machines often forbid it (virtual machines, access control on PCI Express).
No number here was measured by Pion.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """What connects cards: the bus bandwidth in GB/s (10⁹ bytes per second), and who says it."""

    name: str
    gb_per_second: float
    source: str

    @property
    def bytes_per_second(self) -> float:
        return 1e9 * self.gb_per_second


# ---------------------------------------------------------------- kinds of links

# NCCL counts 20.0 GB/s for each of 12 links: 240. A ring of 8 reached 231 on AWS p4d.
NVSWITCH_A100 = Link("NVSwitch, NVLink 3", 230.0, "measured by a user: NVIDIA/nccl issue 527")
# NCCL counts 20.6 GB/s for each of 18 links. With NVLink SHARP, 8 cards reach 480.
NVSWITCH_H100 = Link(
    "NVSwitch, NVLink 4", 370.0, "an NCCL developer: NVIDIA/nccl-tests issue 212 (a ring)"
)
NVSWITCH_B200 = Link(
    "NVSwitch, NVLink 5", 720.0, "18 × 40.1 GB/s in NCCL's src/graph/topo.h; not measured"
)
# 8 cards without NVSwitch: 35 to 45.
PCIE_5_H100 = Link(
    "PCI Express 5.0 x16", 35.0, "a provider's blog: docs.alayanew.com, 2026-05-06 (secondary)"
)
# The best case: 8 cards, probably behind PCI Express switches.
PCIE_5_GEFORCE = Link(
    "PCI Express 5.0 x16", 28.0, "measured by a user, 8 × RTX 5090: NVIDIA/nccl issue 1639"
)
# With NCCL as installed; users reached 37 to 42 after changes of its settings.
PCIE_5_PRO = Link(
    "PCI Express 5.0 x16",
    22.0,
    "measured by a user, 8 × RTX PRO 6000: github.com/voipmonitor/rtx6kpro (secondary)",
)
# As much as 4 × RTX 4090 through the CPU's memory (22 if the cards send to each other), and as
# little as three A100 on PCI Express (20, NVIDIA/nccl-tests issue 178).
PCIE_4 = Link(
    "PCI Express 4.0 x16", 18.0, "measured by a user, 4 × RTX 4090: NVIDIA/nccl issue 1603"
)
PCIE_3 = Link("PCI Express 3.0 x16", 9.0, "assumed: half of PCI Express 4.0, as the slot is")

# Between two machines. What providers sell differs from 1 to 3,200 Gb/s.
BETWEEN_MACHINES = Link("10 Gb/s between machines", 1.25, "assumed")

# SkyPilot's name of a GPU → what connects several of them in one machine. From NVIDIA's data
# sheets: which slot a card has.
LINKS: dict[str, Link] = {
    "T4": PCIE_3,
    "RTXA4000": PCIE_4,
    "RTXA4500": PCIE_4,
    "RTXA5000": PCIE_4,
    "RTXA6000": PCIE_4,
    "RTX3090": PCIE_4,
    "RTX4090": PCIE_4,
    "RTX6000-Ada": PCIE_4,
    "A10": PCIE_4,
    "A30": PCIE_4,
    "A40": PCIE_4,
    "L4": PCIE_4,
    "L40": PCIE_4,
    "L40S": PCIE_4,
    "A100": PCIE_4,
    "A100-80GB": PCIE_4,
    "A100-80GB-SXM": NVSWITCH_A100,
    "H100": PCIE_5_H100,
    "H100-NVL": PCIE_5_H100,
    "H100-SXM": NVSWITCH_H100,
    "H200": NVSWITCH_H100,
    "H200-SXM": NVSWITCH_H100,
    "B200": NVSWITCH_B200,
    "RTX5090": PCIE_5_GEFORCE,
    "RTXPRO6000": PCIE_5_PRO,
    "RTXPRO6000-WK": PCIE_5_PRO,
    "RTXPRO6000-MaxQ": PCIE_5_PRO,
}


def link_of(gpu: str, *, between_machines: bool = False) -> Link:
    """Return what connects cards that SkyPilot calls `gpu`.

    Cards of several machines are as slow as the slower of both links, because a ring passes each
    link. If the link of a card is unknown, return the slowest link of this table, whose name then
    says so.
    """
    found = LINKS.get(gpu)
    if found is None:
        slowest = min(LINKS.values(), key=lambda link: link.gb_per_second)
        source = f"the link of a {gpu} is unknown: assumed to be the slowest known"
        found = Link(f"unknown, as {slowest.name}", slowest.gb_per_second, source)
    if between_machines and BETWEEN_MACHINES.gb_per_second < found.gb_per_second:
        return BETWEEN_MACHINES
    return found
