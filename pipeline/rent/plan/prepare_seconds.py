"""How long a machine tokenizes text: an estimate from the speed that another machine has measured.

    seconds for a MB on n cores = serial + parallel / n
    parallel = n measured × (seconds for a MB measured − serial)

The serial part is what one process does while the others wait. Text in pieces (docs/state.md) is
read and tokenized by all cores. One process joins the ids, and hashes and writes the shards, at
540 MB/s of text. Less text is read, cut and joined by one thread, whose parts took 0.041 s for a MB
one after the other. Both were measured on two busy cores. The formula knows nothing of memory,
disks and cores that share a cache, and takes the measured text for one that was prepared as this
one will be.
"""

from __future__ import annotations

from pipeline.state.shared.speeds import PastPreparing

# Seconds of one core for a MB of text (10^6 bytes).
SERIAL, SERIAL_IN_PIECES = 0.041, 1 / 540


def prepare_seconds(
    megabytes: float, measured: PastPreparing, cores: float | None, *, in_pieces: bool
) -> float:
    """Return the seconds for so many MB of text on a machine with `cores`.

    If these or those of the measurement are not known, they count as equal.
    """
    each = 1 / measured.mb_per_second
    if not cores or not measured.cores:
        return megabytes * each
    serial = min(each, SERIAL_IN_PIECES if in_pieces else SERIAL)
    return megabytes * (serial + (each - serial) * measured.cores / cores)
