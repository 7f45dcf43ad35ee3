"""The Modelfile gives Ollama the model's template, stops and sampling."""

import json
import re
import shutil

import pytest

from pion.data.chat.chat_format import ChatFormat
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.formats.export import export_model
from pion.formats.gguf.modelfile import go_template, modelfile
from tests.support.finished_run import tiny_model, tiny_tokenizer
from tests.support.in_process_renderer import InProcessRenderer
from tests.support.tokenizer_kinds import write_files
from tests.support.waiting import run_to_end

# Renders the template in its first file with the messages in its second, as Ollama does.
RENDERER = """
package main

import ("encoding/json"; "os"; "text/template")

type Message struct { Role string; Content string }

func main() {
	source, _ := os.ReadFile(os.Args[1])
	data, _ := os.ReadFile(os.Args[2])
	var messages []Message
	if err := json.Unmarshal(data, &messages); err != nil { panic(err) }
	found := template.Must(template.New("t").Parse(string(source)))
	err := found.Execute(os.Stdout, map[string]any{"Messages": messages})
	if err != nil { panic(err) }
}
"""
CONVERSATIONS = [
    [{"role": "user", "content": "What does str.split do?"}],
    [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": 'Say "hello" & <b>{{ nothing }}</b>'},
        {"role": "assistant", "content": "hello 🙂"},
        {"role": "user", "content": "Again"},
    ],
    [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Two"},
    ],
]


@pytest.fixture
def export(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.save(tmp_path / "tokenizer.json")
    export_model(tiny_model(tokenizer.vocab_size), tmp_path / "tokenizer.json", tmp_path / "export")
    return tmp_path / "export"


def test_it_has_the_models_template_stops_and_sampling(export):
    text = modelfile(export, "model-f16.gguf", 256)
    assert text.startswith("FROM ./model-f16.gguf\nTEMPLATE ")
    assert re.findall(r"PARAMETER (.*)", text) == [
        'stop "<|endoftext|>"',
        "num_ctx 256",
        "temperature 0.8",
        "top_k 50",
        "top_p 0.9",
        "min_p 0",
        "repeat_penalty 1",
    ]


def test_a_base_model_continues_the_prompt(export):
    (export / "chat_template.jinja").unlink()
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile(export, "model-f16.gguf", 256)


def test_the_template_of_others_is_left_to_ollama(tmp_path, monkeypatch):
    monkeypatch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)
    folder = write_files("smollm2", tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}")
    text = modelfile(folder, "model-f16.gguf", 256)
    assert "TEMPLATE" not in text
    assert "ollama show --template" in text
    assert 'PARAMETER stop "<|im_end|>"' in text


def test_a_stop_with_quotes_is_refused(export):
    path = export / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<|eos|>"))
    settings = json.loads(path.read_text())
    settings["added_tokens"][0]["content"] = "a {{ b"
    settings["model"]["vocab"]["a {{ b"] = settings["model"]["vocab"].pop("<|eos|>")
    path.write_text(json.dumps(settings))
    config = json.loads((export / "tokenizer_config.json").read_text())
    (export / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "a {{ b"}))
    (export / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match=r"a Modelfile can't write the token 'a \{\{ b'"):
        modelfile(export, "model-f16.gguf", 256)


def rendered(folder, template, conversations):
    """Return what Go's text/template makes of conversations."""
    (folder / "main.go").write_text(RENDERER)
    (folder / "template").write_text(template)
    program = str(folder / "render")
    run_to_end(["go", "build", "-o", program, "main.go"], cwd=folder, check=True)
    texts = []
    for messages in conversations:
        (folder / "messages.json").write_text(json.dumps(messages))
        command = [program, folder / "template", folder / "messages.json"]
        texts.append(run_to_end(command, check=True).stdout)
    return texts


@pytest.mark.soak  # Go compiles its standard library first
@pytest.mark.skipif(shutil.which("go") is None, reason="no Go: apt-get install golang-go")
def test_go_renders_the_template_to_our_ids(export, tmp_path):
    tokenizer = Tokenizer.from_file(export / "tokenizer.json")
    text = modelfile(export, "model-f16.gguf", 256)
    (template,) = re.findall(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    assert template == go_template("<|endoftext|>")
    chat = ChatFormat(export / "tokenizer.json", tokenizer)
    for messages, found in zip(CONVERSATIONS, rendered(tmp_path, template, CONVERSATIONS)):
        (encoding,) = tokenizer.encode_with_specials([found])
        assert encoding.ids == chat.prompt_ids(messages)
