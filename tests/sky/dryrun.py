"""Run by the tests: what the API server chooses on `sky launch --dryrun`, without the server.

    python dryrun.py '["sky/x.yaml", …]' RunPod …      with a home folder of the tests

Prints one line of JSON: by file, what would be rented, or why nothing would.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from sky import check, exceptions, global_user_state, optimizer, task
from sky.clouds import cloud
from sky.utils import dag_utils


def main() -> None:
    compute = cloud.CloudCapability.COMPUTE
    # The state that `sky check` leaves, so that no credentials are checked.
    global_user_state.set_enabled_clouds(sys.argv[2:], compute, "default")
    allowed = check._get_workspace_allowed_clouds("default")
    global_user_state.set_allowed_clouds(allowed, "default")
    answers: dict[str, dict[str, Any]] = {}
    with contextlib.redirect_stdout(sys.stderr):
        for path in json.loads(sys.argv[1]):
            answers[path] = dryrun(path)
    print(json.dumps(answers))


def dryrun(path: str) -> dict[str, Any]:
    config = yaml.safe_load(Path(path).read_text())
    loaded = task.Task.from_yaml_config(config, env_overrides=[("JOB", "jobs/demo.yaml")])
    try:
        chosen = optimizer.Optimizer.optimize(dag_utils.convert_entrypoint_to_dag(loaded))
    except exceptions.ResourcesUnavailableError as error:
        return {"unavailable": str(error)}
    best = chosen.tasks[0].best_resources
    return {
        "cloud": str(best.cloud),
        "gpus": best.accelerators,
        "use_spot": best.use_spot,
        "price": round(best.get_cost(3600), 4),
        "nodes": loaded.num_nodes,
    }


if __name__ == "__main__":
    main()
