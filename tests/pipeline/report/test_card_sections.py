"""The card says how other programs use the GGUF file, and what nobody has tried."""

from __future__ import annotations

import pytest

from pipeline.report.card_sections import gguf_section
from tests.support.jobs import tiny_job


@pytest.mark.parametrize(
    ("to", "fetch", "run"),
    [
        ("hf://user/My-Model", "hf download user/My-Model", "llama-cli -hf user/My-Model"),
        ("models/mine", "cd models/mine", "llama-cli -m model-f16.gguf"),
    ],
)
def test_the_commands_are_for_where_the_model_is(to: str, fetch: str, run: str) -> None:
    section = gguf_section(tiny_job(), to, "")
    assert fetch in section
    assert run in section
    assert "nobody has tried LM Studio or Ollama" in section


def test_ollama_gets_a_name_that_it_takes() -> None:
    section = gguf_section(tiny_job(name="My_Run+2"), "out", "")
    assert "ollama create my_run-2 -f Modelfile && ollama run my_run-2" in section
