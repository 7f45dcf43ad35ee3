"""llama.cpp's own program rounds a file to 4 bits: how Pion calls it, and what it may answer."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from pion.errors import BadInput, PionError
from pion.formats.gguf.four_bits import PROGRAM, find_quantizer, quantize


def gguf_file(path, *names):
    writer = GGUFWriter(path, "llama")
    for name in names:
        writer.add_tensor(name, np.zeros((2, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stand_in(folder, code):
    """Put a program in the place of llama.cpp's, which can't be had here."""
    path = folder / PROGRAM
    path.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nwhole, out, kind = sys.argv[1:]\n{code}"
    )
    path.chmod(0o755)
    return str(path)


def test_it_gets_both_files_and_the_type(tmp_path, monkeypatch):
    whole = gguf_file(tmp_path / "1.gguf", "a", "b")
    program = stand_in(
        tmp_path,
        "assert kind == 'Q4_K_M'\nassert out[0] == whole[0] == '/'\nshutil.copy(whole, out)",
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert find_quantizer("demo", Path("2.gguf")) == program
    assert quantize(program, Path("1.gguf"), Path("2.gguf")) == whole.stat().st_size
    assert sorted(os.listdir(tmp_path)) == ["1.gguf", "2.gguf", PROGRAM]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "print('loading')\nsys.exit('no space left')",
            "exit code 1, and said last: no space left",
        ),
        ("pass", "exit code 0, and said last: nothing"),
        ("open(out, 'w').write('x')", "wrote other tensors"),
        ("shutil.copy(sys.argv[0] + '.other', out)", "wrote other tensors"),
    ],
)
def test_what_it_spoils_is_not_kept(tmp_path, code, said):
    program = stand_in(tmp_path, code)
    gguf_file(tmp_path / f"{PROGRAM}.other", "a")
    whole = gguf_file(tmp_path / "whole.gguf", "a", "b")
    out = tmp_path / "out.gguf"
    out.write_bytes(b"GGUF of before")
    with pytest.raises(PionError, match=said):
        quantize(program, whole, out)
    assert out.read_bytes() == b"GGUF of before"
    assert not list(tmp_path.glob(".*"))


def test_without_it_the_commands_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput) as refused:
        find_quantizer("demo", Path("out/demo.gguf"))
    assert "pion export demo out/demo-f16.gguf" in str(refused.value)
    assert "llama-quantize out/demo-f16.gguf out/demo.gguf Q4_K_M" in str(refused.value)
