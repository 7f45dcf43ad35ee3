"""Count our frames from `pion run` to the first backward pass: `python tools/count_frames.py JOB`.

The job must have `hardware: {workers: 0}`. It ends there, so use a copy of a tiny job.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY = Path(__file__).parents[1]
PACKAGES = tuple(str(REPOSITORY / name) + "/" for name in ("pion", "pipeline"))


def show_frames(*_: Any, **__: Any) -> NoReturn:
    """Print the frames of ours that have led here, and end the process."""
    found = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGES)]
    for frame in found:
        print(f"  {Path(frame.filename).relative_to(REPOSITORY)}:{frame.name}")
    print(f"{len(found)} frames in {len({frame.filename for frame in found})} files", flush=True)
    os._exit(0)


def main() -> None:
    """Run the job as the command does."""
    sys.argv = ["pion", "run", *sys.argv[1:]]
    import torch

    torch.Tensor.backward = show_frames  # type: ignore[method-assign]
    from pipeline.entry import run_and_exit

    run_and_exit()


if __name__ == "__main__":
    main()
