"""`transformers serve` answers with the model's answer alone: not the prompt, not its end.

Only `-m soak` runs this test: the server imports transformers and torch a second time, and needs
packages (openai, uvicorn) that only developers have.
"""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers.utils import is_openai_available

from pion.data.chat.conversation import Turn, tokenize
from pion.data.tokens.tokenizer import train_bpe
from pion.formats.export import export_model
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config
from tests.support.waiting import LONG_SECONDS, wait_until

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not is_openai_available(), reason="transformers serve needs openai"),
]
QUESTION, ANSWER = (
    "What does str.split do?",
    "It cuts a text.\n\nThen <|assistant|> returns a list.",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server and its model, which has learned one answer by heart."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = train_bpe([QUESTION, ANSWER] * 20, 300)
    turns = [Turn("user", QUESTION), Turn("assistant", ANSWER)]
    ids = torch.tensor([tokenize(tokenizer, turns).ids.tolist()])
    torch.manual_seed(0)
    model = Decoder(tiny_config(vocab_size=tokenizer.vocab_size, seq_len=256))
    steps = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[0, 1:]).backward()
        steps.step()
        steps.zero_grad()
    tokenizer.save(folder / "tokenizer.json")
    export_model(model.eval(), folder / "tokenizer.json", folder / "export")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve"]
    command += [str(folder / "export"), "--device", "cpu", "--host", "127.0.0.1"]
    log = (folder / "log").open("w")
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, env=offline)
    try:
        wait_until(
            lambda: process.poll() is not None or is_up(port),
            lambda: (folder / "log").read_text()[-2000:],
            seconds=LONG_SECONDS,
        )
        yield f"http://127.0.0.1:{port}", str(folder / "export")
    finally:
        process.terminate()
        process.wait(LONG_SECONDS)
        log.close()


def is_up(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def ask(server, **options):
    address, model = server
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": model, "messages": messages, "max_tokens": 100, "temperature": 0, **options}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        return str(response.read().decode())


def test_an_answer_is_the_answer_alone(server):
    (choice,) = json.loads(ask(server))["choices"]
    assert choice["message"]["content"] == ANSWER


def test_a_streamed_answer_is_the_answer_alone(server):
    events = [
        line[6:] for line in ask(server, stream=True).splitlines() if line.startswith("data:")
    ]
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    texts = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(text for text in texts if text) == ANSWER
    assert len([text for text in texts if text]) > 3
