"""Run `python -m pion.bench` as on a bare image: torch, numpy, safetensors and tokenizers.

    python bare.py [OPTION …]

Importing any other package fails as if the package were not installed. What torch itself requires
is there, because torch's installation brings it.
"""

import importlib.metadata
import re
import runpy
import sys
from importlib.abc import MetaPathFinder

INSTALLED = ("torch", "numpy", "safetensors")


def brought_by(*names):
    """Return the distributions that pip would install for these."""
    found = set()
    left = list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another system
            continue
        left += [re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line]
    return found


def absent():
    """Return the names that can be imported here, but not on a bare image."""
    brought = brought_by(*INSTALLED)
    names = {"pipeline", "benchmarks", "tests"}
    for name, distributions in importlib.metadata.packages_distributions().items():
        if not any(re.sub(r"[-_.]+", "-", d).lower() in brought for d in distributions):
            names.add(name)
    return names - {"pion", "tokenizers"}  # tokenizers requires more than it imports


class BareImage(MetaPathFinder):
    """Finds what the finders of this process find, except the absent packages."""

    def __init__(self, absent, finders):
        self.absent, self.finders = absent, list(finders)

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in self.absent:
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec is not None), None)


if __name__ == "__main__":
    sys.meta_path[:] = [BareImage(absent(), sys.meta_path)]
    sys.argv[0] = "pion.bench"
    runpy.run_module("pion.bench", run_name="__main__")
