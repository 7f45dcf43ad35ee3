"""Ray Train's trainer without the helper processes that Pion does not need.

Each helper is a Python process that imports Ray Train, which takes seconds of a core while the
workers start. Ray Train waits for three of them. In a Ray of our own, the controller, which starts
the workers and replaces those that die, runs in the process that called `fit()`: both end together
anyway. Ray Train has no setting for that.

The names from `_internal` may change with any Ray; tests/pipeline/workers/test_ray_*.py tell.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.runtime_context import RuntimeContext
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import state, worker_group
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.workers.rendezvous import PrivateTorch


class Trainer(DataParallelTrainer):
    """Trains in a Ray of our own, or in one that already runs. Its `backend_config` says which."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        # Workers read their rows themselves.
        unneeded: tuple[type[RayTrainCallback], ...] = (DatasetsCallback,)
        if self._is_private():
            # It frees the workers' CPUs after its controller has died. The reaper ends all of ours.
            unneeded += (PlacementGroupCleanerCallback,)
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, unneeded)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        if not self._is_private():
            return super()._initialize_and_run_controller(**arguments)
        arguments["scaling_policy"] = OnThisMachine(arguments["scaling_policy"].scaling_config)
        # Workers would ask this actor for what they reported to Ray Train. They report nothing.
        RuntimeContext.current_actor = None  # type: ignore[method-assign, assignment]
        worker_group.SynchronizationActor = Nobody  # type: ignore[misc, assignment]
        state._shutdown_sync_actor = lambda nobody: None  # type: ignore[assignment]
        controller = TrainController(**arguments)
        asyncio.run(controller.run())
        result = controller.get_result()
        if result.error:
            raise result.error
        return result

    def _is_private(self) -> bool:
        assert isinstance(self.backend_config, PrivateTorch)
        return self.backend_config.folder is not None


class Nobody:
    """Takes the place of the actor at which workers wait for each other while they report."""

    @classmethod
    def options(cls, **_: Any) -> type[Nobody]:
        """Return what has `remote`."""
        return cls

    @staticmethod
    def remote(**_: Any) -> str:
        """Return what the workers get in place of the actor."""
        return "nobody"


class OnThisMachine(FixedScalingPolicy):
    """A fixed number of workers, for which nobody can add a node: so no node is asked for."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Ask nobody."""

    def _maybe_send_resource_request(self) -> None:
        """Ask nobody."""
