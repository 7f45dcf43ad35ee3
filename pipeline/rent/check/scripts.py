"""Check that the machine has the scripts that a rental file starts there: without one, the machine
ends with exit code 127 after a boot that was paid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pion.files import expand
from pipeline.rent.own_code import BOOT
from pipeline.rent.sky_yaml import SkyYaml

_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
# What a shell or Python is told to read, or a path that is a command by itself.
_SCRIPT = re.compile(
    r"(?:^|[\s;&|(])(?:(?:bash|sh|source|\.|python3?)\s+(?:-\w+\s+)*|(?=\.{0,2}/|~/))"
    r"([\w./~-]+\.(?:sh|py))\b"
)
# After one of these, a script may come from elsewhere, or a path begins in another folder.
_ELSEWHERE = re.compile(r"\b(?:cd|git|curl|wget|tar|unzip|cat|cp|mv|aws|rsync|pushd)\b|>")


def refuse_missing_script(sky_yaml: SkyYaml, root: Path, left_out: set[Path]) -> None:
    """Raise BadInput if `setup` or `run` starts a script that is not copied to the machine.

    The machine gets what is in `root` except what is `left_out`, and what `file_mounts` name. A
    script that may be of the image, or made on the machine, is not looked for.
    """
    before = ""
    for key in ("setup", "run"):
        before += _COMMENT.sub("", str(sky_yaml.config.get(key) or "")) + "\n"
        for found in _SCRIPT.finditer(before):
            script = found[1]
            file = _source(script, root, sky_yaml.config.get("file_mounts") or {})
            made = _ELSEWHERE.search(before[: found.start(1)])
            if file is None or made or (file.is_file() and file not in left_out):
                continue
            why = "there is no such file here"
            if file.is_file():
                why = "the file is left out by .skyignore or .gitignore"
            raise BadInput(
                f"{_place(sky_yaml, script)}: `{key}` starts {script}, which is not copied to the "
                f"machine ({why}: {file}). The machine would end with exit code 127, after a boot "
                f"that you pay. {_advice(sky_yaml, script)}"
            )


def _source(script: str, root: Path, mounts: dict[str, Any]) -> Path | None:
    """Return the file here that becomes the script on the machine; None if nobody can say."""
    for target, source in mounts.items():
        if isinstance(source, str) and (script == target or script.startswith(f"{target}/")):
            return None if "://" in source else expand(source) / script[len(target) + 1 :]
    return None if script.startswith(("/", "~")) else root / script


def _place(sky_yaml: SkyYaml, script: str) -> str:
    """Return the file and the line that names the script."""
    lines = sky_yaml.path.read_text(encoding="utf-8").splitlines() if sky_yaml.path.exists() else []
    line = next((n for n, text in enumerate(lines, 1) if script in text.partition("#")[0]), None)
    return f"{sky_yaml.path} line {line}" if line else str(sky_yaml.path)


def _advice(sky_yaml: SkyYaml, script: str) -> str:
    if script.endswith(BOOT):
        return "A rental file of `pion init runpod-spot` brings this script. Change such a file."
    return f"Put the script into the `workdir` of {sky_yaml.path}, or name it in `file_mounts`."
