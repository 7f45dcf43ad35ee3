"""Loaded by every Python of the loopback rental, because its folder is on PYTHONPATH.

Before SkyPilot believes that a pod is gone, it checks this machine's network with two public
addresses. Here it asks the loopback RunPod instead, because tests need no network. And a test may
wait less than ten minutes until an idle machine ends itself.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

# By module: a constant, what it is in SkyPilot (None: not checked), and what it is here.
CHANGED = {
    "sky.backends.backend_utils": (
        "_TEST_IP_LIST",
        None,
        [os.environ.get("RUNPOD_API_BASE_URL")],
    ),
    "sky.jobs.recovery_strategy": (
        "_AUTODOWN_MINUTES",
        10,
        int(os.environ.get("LOOPBACK_AUTODOWN_MINUTES", "10")),
    ),
}


class _Change(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in CHANGED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module
            constant, expected, value = CHANGED[name]

            def run_and_change(module: ModuleType) -> None:
                run(module)
                found = vars(module)[constant]
                assert expected in (None, found), f"SkyPilot's {constant} is {found} now"
                vars(module)[constant] = value

            spec.loader.exec_module = run_and_change  # type: ignore[method-assign]
        return spec


if "RUNPOD_API_BASE_URL" in os.environ:
    sys.meta_path.insert(0, _Change())
