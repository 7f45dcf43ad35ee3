"""Pion itself on a rented machine: where the folder that is copied there is not Pion's checkout,
Pion is copied next to it.

Of an installed Pion, the copy is a wheel, made again from the installed files.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pion import DISTRIBUTION
from pion.errors import BadInput
from pion.files import private_cache_folder
from pipeline.machine.own_files import IN_CHECKOUT, OWN

BOOT = "sky/boot.sh"
# Where the machine has it.
MOUNT = "~/pion"
# The files of a wheel; the installer adds others.
_PACKAGES = ("pion", "pipeline")
_METADATA = ("METADATA", "WHEEL", "entry_points.txt", "LICENSE")


def brings_code(config: Mapping[str, Any]) -> bool:
    """Return whether a task copies Pion to its machine, next to the folder of the user."""
    mounts = config.get("file_mounts")
    return isinstance(mounts, dict) and MOUNT in mounts


def with_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task whose machine gets this Pion, and boots with its script. Raises BadInput."""
    mounts = {**(config.get("file_mounts") or {}), MOUNT: str(code_folder())}
    run = str(config.get("run") or "").replace(f"bash {BOOT}", f"bash {MOUNT}/{BOOT}")
    return {**config, "file_mounts": mounts, "run": run}


def code_folder() -> Path:
    """Return the folder that a machine gets as MOUNT: this checkout, or a folder with the wheel and
    the boot script, made once for each installed Pion.

    Raises BadInput if Pion was not installed as a package.
    """
    if IN_CHECKOUT:
        return OWN
    installed = importlib.metadata.distribution(DISTRIBUTION)
    files = [
        file
        for file in installed.files or ()
        if file.hash and (file.parts[0] in _PACKAGES or file.name in _METADATA)
    ]
    of_wheel = next((file.parent for file in files if file.name == "WHEEL"), None)
    if of_wheel is None:
        raise BadInput(
            f"the files of {DISTRIBUTION} are not recorded here, so Pion can't be copied to a "
            "machine. Install it with uv or pip, and run the same command again."
        )
    record = "".join(f"{f},{f.hash.mode}={f.hash.value},{f.size}\n" for f in files if f.hash)
    digest = hashlib.sha256(record.encode()).hexdigest()[:8]
    folder = private_cache_folder("code") / f"{installed.version}-{digest}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent) as making:
            part = Path(making, "part")
            (part / BOOT).parent.mkdir(parents=True)
            shutil.copy(OWN / BOOT, part / BOOT)
            name = f"{of_wheel.stem}-py3-none-any.whl"
            with zipfile.ZipFile(part / name, "w", zipfile.ZIP_DEFLATED) as wheel:
                for file in files:
                    wheel.write(str(file.locate()), str(file))
                wheel.writestr(f"{of_wheel}/RECORD", f"{record}{of_wheel}/RECORD,,\n")
            with contextlib.suppress(OSError):  # another process was first
                part.rename(folder)
    return folder
