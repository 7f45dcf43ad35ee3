"""Where torch.compile keeps its kernels: in a folder that only this user may enter.

torch loads pickles from that folder. By default the folder lies below the temporary folder, under a
name that other users of the machine know and could take first.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.machine.private import cache_folder, private_cache_folder

# Environment variable of torch. Triton's kernels lie in the same folder.
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_NAME = "torch-compile"


def compile_cache_folder() -> Path:
    """Return the folder, which may not exist yet: the user's choice, or one in our cache."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen) if chosen else cache_folder() / _NAME


def use_private_compile_cache() -> None:
    """Let torch.compile use a private folder in this process, unless the user has chosen one.

    Raises BadInput if the folder can't be made private.
    """
    if not os.environ.get(VARIABLE):
        os.environ[VARIABLE] = str(private_cache_folder(_NAME))
