"""Loaded by every Python of the loopback rental, because its folder is on PYTHONPATH.

Before SkyPilot believes that a pod is gone, it checks this machine's network with two public
addresses. Here it asks the loopback RunPod instead, because tests need no network.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType


class _AskLoopback(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "sky.backends.backend_utils":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_redirect(module: ModuleType) -> None:
                run(module)
                assert hasattr(module, "_TEST_IP_LIST"), "SkyPilot checks the network differently"
                vars(module)["_TEST_IP_LIST"] = [os.environ["RUNPOD_API_BASE_URL"]]

            spec.loader.exec_module = run_and_redirect  # type: ignore[method-assign]
        return spec


if "RUNPOD_API_BASE_URL" in os.environ:
    sys.meta_path.insert(0, _AskLoopback())
