"""Round the matrices of a GGUF file to 4 bits with llama.cpp's own program.

Which matrices get how many bits, and with which scales, is decided there, and changes there.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from gguf import GGUFReader

from pion.errors import BadInput, PionError

PROGRAM = "llama-quantize"
# What `--type` and llama.cpp call it: 4 bits for most matrices, 6 for some.
KIND = "q4_k_m"


def find_quantizer(model: str, out: Path) -> str:
    """Return the path of llama.cpp's program. Raises BadInput, with the commands that need no such
    program on this machine, if PATH has none."""
    program = shutil.which(PROGRAM)
    if program is None:
        unquantized = out.with_name(f"{out.stem}-f16.gguf")
        raise BadInput(
            f"--type {KIND} needs {PROGRAM}, a program of llama.cpp, and PATH has none. Nothing "
            f"was written. Install llama.cpp, or run pion export {model} {unquantized}, and then, "
            f"where llama.cpp is, {PROGRAM} {unquantized} {out} {KIND.upper()}."
        )
    return program


def quantize(program: str, whole: Path, out: Path) -> int:
    """Round the GGUF file `whole` to the file `out`, and return its bytes.

    The file appears whole or not at all. Raises PionError if the program fails, or writes other
    tensors.
    """
    # An absolute path, because the program takes a name that begins with digits for a type.
    partial = out.absolute().with_name(f".{out.name}.partial")
    try:
        done = subprocess.run(
            [program, str(whole.absolute()), str(partial), KIND.upper()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        last = (done.stdout.strip().splitlines() or ["nothing"])[-1]
        if done.returncode or not partial.exists():
            raise PionError(
                f"{program} ended with exit code {done.returncode}, and said last: {last:.300}. No "
                f"file is left. The model is safe. Try --type q8_0, which needs no {PROGRAM}."
            )
        if _tensors(partial) != _tensors(whole):
            raise PionError(
                f"{program} wrote other tensors than the model's. The file was deleted. The model "
                "is safe."
            )
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out.stat().st_size


def _tensors(path: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor in a GGUF file, by its name."""
    try:
        return {tensor.name: tensor.shape.tolist() for tensor in GGUFReader(path).tensors}
    except (ValueError, KeyError, IndexError):  # of a file that is no GGUF file
        return {}
