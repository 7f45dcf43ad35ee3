"""Read the checkpoints of the seed projects without running any code in them.

A seed is one of the public projects that Pion grew out of. The family of a checkpoint is recognized
by the names of its tensors, never by a class.
"""

from pion.formats.seeds.checkpoint import import_seed

__all__ = ["import_seed"]
