"""`pion serve` says what it serves, refuses what can't work before it loads anything, and stops."""

import json
import os
import signal
import socket

import httpx
import pytest

from pion.errors import BadInput
from pipeline.serve.server import fit_slots
from pipeline.web.address import API_KEY
from tests.families.families import FAMILIES
from tests.support.forked import ForkedRun
from tests.support.waiting import PATIENCE_SECONDS, read_until, rest_of


@pytest.mark.slow
def test_sigterm_ends_streams_with_a_message(run_folder):
    command = ["serve", "--port", "0", f"{run_folder}/demo"]
    process = ForkedRun(command, run_folder, os.environ)
    try:
        said = read_until(process, "/v1")
        assert "16 answers at once, 256 tokens each" in said
        url = said.splitlines()[-1].split("/v1")[0]
        body = {"prompt": "The", "max_tokens": 255, "n": 16, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            data = [line.removeprefix("data: ") for line in lines if line]
        assert data[-1] == "[DONE]"
        assert json.loads(data[-2])["error"]["code"] == "shutting_down"
        rest = rest_of(process)
        assert process.wait(PATIENCE_SECONDS) == 0
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)


def test_a_port_in_use_is_refused_before_a_model_is_looked_for(pion, here):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, error = pion("serve", "nowhere", "--port", str(port))
    assert code == 2
    assert f"port {port} is in use" in error
    assert f"--port {port + 1}" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no model 'nowhere'"),
        ([], "no model was named"),
        (["--host", "0.0.0.0", "x"], f"export {API_KEY}="),
        (["--host", "no.such.host.invalid", "x"], f"export {API_KEY}="),
        (["--port", "70000", "x"], "0 to 65535"),
        (["--slots", "0", "x"], "--slots must be at least 1"),
        (["--seq-len", "0", "x"], "--seq-len at least 2"),
    ],
)
def test_what_can_t_be_served_is_refused(arguments, words, pion, here, monkeypatch):
    monkeypatch.delenv(API_KEY, raising=False)
    code, _, error = pion("serve", "--port", "0", *arguments)
    assert code == 2
    assert words in error
    assert error.startswith("error: ")


def test_a_short_key_is_refused(pion, here, monkeypatch):
    monkeypatch.setenv(API_KEY, "secret")
    code, _, error = pion("serve", "--host", "0.0.0.0", "--port", "0")
    assert code == 2
    assert "12 or more letters and digits" in error


def test_two_models_of_one_name_are_refused(run_folder, pion, here):
    model = f"{run_folder}/demo"
    code, _, error = pion("serve", "--port", "0", model, f"demo={model}@pretrain")
    assert code == 2
    assert "two models are called 'demo'" in error
    assert "pion serve demo other=" in error


def test_too_little_memory_for_one_answer_is_refused(run_folder, pion, here, monkeypatch):
    monkeypatch.setattr("pipeline.serve.server.free_memory", lambda device: 40_000)
    code, _, error = pion("serve", "--port", "0", f"{run_folder}/demo")
    assert code == 2
    assert "demo: an answer of 256 tokens" in error


def test_fewer_slots_where_memory_is_short():
    model = FAMILIES["pion"].decoder()
    config = model.config
    each = config.n_layers * 2 * config.n_kv_heads * config.head_dim * 4 * 48
    free = int(5 * each / 0.8) + 1
    assert fit_slots("m", model, 16, 48, 1 << 40) == (16, 16 * each)
    assert fit_slots("m", model, 16, 48, free) == (5, 5 * each)
    with pytest.raises(BadInput, match="Use a shorter context: --seq-len 38"):
        fit_slots("m", model, 16, 48, each)
