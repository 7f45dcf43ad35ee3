"""lm-eval gives the same results through `pion serve` as in the evaluate stage, item by item."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy, pad

from pion.data.tokens.tokenizer import train_bpe
from pion.formats.export import export_model
from pion.model.decoder import Decoder
from pipeline.stages.lm_eval_driver import BATCH_SIZE
from tests.support.tiny_config import tiny_config
from tests.support.waiting import LONG_SECONDS, PATIENCE_SECONDS, read_until, run_to_end

QUESTIONS = [
    {"question": f"{i} + 1 =", "choices": [str(i + 1), str(i + 2), "a number"], "answer": 0}
    for i in range(12)
]
TEXTS = [
    {"context": "The quick brown fox", "target": " jumps over the lazy dog."},
    {"context": "def f(x):\n    return x", "target": " + 1234"},
    {"context": "naïve café ☕ 東京", "target": " कि 😀"},
    {"context": "  before", "target": "  after "},
]
# Its context is a special token; so is what comes before each rolling text.
ALONE = {"context": "", "target": "Begin with nothing."}
HEAD = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
metadata:
  version: 1
"""
LIKELIHOOD = """output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{target}}"
target_delimiter: ""
"""
TASKS = {
    "choices": (
        "questions.jsonl",
        'output_type: multiple_choice\ndoc_to_text: "Question: {{question}}\\nAnswer:"\n'
        'doc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\n',
        ["acc", "acc_norm"],
    ),
    "texts": ("texts.jsonl", LIKELIHOOD, ["perplexity", "acc"]),
    "alone": ("alone.jsonl", LIKELIHOOD, ["perplexity", "acc"]),
    "rolling": (
        "texts.jsonl",
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\n'
        'doc_to_target: "{{context}}{{target}}"\n',
        ["word_perplexity", "byte_perplexity", "bits_per_byte"],
    ),
    "written": (
        "texts.jsonl",
        'output_type: generate_until\ndoc_to_text: "{{context}}"\ndoc_to_target: "{{target}}"\n'
        "generation_kwargs:\n  do_sample: false\n  max_gen_toks: 20\n  until: []\n",
        ["exact_match"],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with tasks, their data, and an exported model that has learned a part of it."""
    folder = tmp_path_factory.mktemp("lm-eval")
    for name, rows in (("questions", QUESTIONS), ("texts", TEXTS), ("alone", [ALONE])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "tasks").mkdir()
    for name, (file, task, metrics) in TASKS.items():
        named = "".join(f"  - metric: {metric}\n" for metric in metrics)
        text = HEAD.format(name=name, file=file) + task + "metric_list:\n" + named
        (folder / "tasks" / f"{name}.yaml").write_text(text)
    texts = [f"Question: {one['question']}\nAnswer: {one['choices'][0]}" for one in QUESTIONS]
    texts += [one["context"] + one["target"] for one in TEXTS[:2]]
    tokenizer = train_bpe(texts, 300)
    tokenizer.save(folder / "tokenizer.json")
    ends = [tokenizer.end_of_text]
    rows = [torch.tensor(ends + tokenizer.encode(text) + ends) for text in texts]
    longest = max(map(len, rows))
    ids = torch.stack([pad(row, (0, longest - len(row)), value=ends[0]) for row in rows])
    torch.manual_seed(0)
    model = Decoder(tiny_config(vocab_size=tokenizer.vocab_size, seq_len=128))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    export_model(model, folder / "tokenizer.json", folder / "model")
    return folder


@pytest.fixture(scope="module")
def url(folder):
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--port", "0", "--dtype", "float32"]
    process = subprocess.Popen(
        [*command, str(folder / "model")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
    )
    try:
        yield read_until(process, "/v1").splitlines()[-1].split("/v1")[0] + "/v1/completions"
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_SECONDS)


def run(command, folder, out):
    """Run lm-eval; return its answers to each item and its metrics, by task."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    run_to_end(
        [*command, "--log_samples"],
        seconds=LONG_SECONDS,
        cwd=folder,
        env=os.environ | offline,
        check=True,
    )
    (results,) = out.rglob("results_*.json")
    found = {"metrics": json.loads(results.read_text())["results"]}
    for path in out.rglob("samples_*.jsonl"):
        rows = sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["doc_id"])
        task = path.name.removeprefix("samples_").rsplit("_", 1)[0]
        found[task] = [answer for row in rows for (answer,) in row["resps"]]
    return found


@pytest.fixture(scope="module")
def staged(folder):
    """What the evaluate stage's own model finds."""
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import sanitize_list

    from pipeline.stages.lm_eval_model import CheckedModel

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        about = {"device": "cpu", "batch_size": BATCH_SIZE}
        model = CheckedModel(str(folder / "model"), folder / "tokenizer.json", about)
        manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
        evaluated = simple_evaluate(model, tasks=[*TASKS], task_manager=manager)
        found = {"metrics": evaluated["results"]}
        for task, rows in evaluated["samples"].items():
            rows.sort(key=lambda row: row["doc_id"])
            # As lm-eval's command writes them.
            resps = [sanitize_list(row["resps"]) for row in rows]
            found[task] = [answer for row in resps for (answer,) in row]
        yield found


@pytest.mark.soak
@pytest.mark.parametrize("sends", ["ids", "batches of ids", "texts", "batches of texts"])
def test_every_item_has_the_result_of_the_evaluate_stage(sends, staged, folder, url):
    texts, batch = sends.endswith("texts"), 8 if "batches" in sends else 1
    arguments = f"base_url={url},model=model,tokenizer={folder / 'model'},max_length=128"
    arguments += ",num_concurrent=1" + (",tokenized_requests=False" if texts else "")
    # Texts can't spell the special token that comes first.
    tasks = [task for task in TASKS if not texts or task not in ("alone", "rolling")]
    out = folder / sends
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"]
    command += ["--model_args", arguments, "--tasks", ",".join(tasks), "--include_path", "tasks"]
    found = run([*command, "--batch_size", str(batch), "--output_path", str(out)], folder, out)
    flags = []
    for task in tasks:
        assert len(found[task]) == len(staged[task]) > 0
        for ours, theirs in zip(found[task], staged[task], strict=True):
            if task == "written":
                assert ours == theirs
            elif task == "rolling":
                assert float(ours) == pytest.approx(float(theirs), abs=1e-4)
            else:
                assert float(ours[0]) == pytest.approx(float(theirs[0]), abs=1e-4)
                assert ours[1] == theirs[1]
                flags.append(ours[1])
        for name, value in staged["metrics"][task].items():
            if isinstance(value, float):
                assert found["metrics"][task][name] == pytest.approx(value, rel=1e-4), name
    assert len(set(flags)) == 2  # some are the greedy answer, some are not
