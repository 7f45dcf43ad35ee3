"""Jobs whose data is rehearsed, with a tokenizer next to them unless they train one."""

import json

import yaml

from pipeline.job.file import load_job
from tests.support.corpora import save_tokenizer
from tests.support.finished_run import tiny_tokenizer
from tests.support.jobs import tiny_dict, tiny_job, write_tiny_data
from tests.support.preference_runs import PREFER, write_pairs

TEXT = {"kind": "text", "path": "text.txt", "split": "paragraph"}
TRAINED = {"tokenizer": {"train": {"vocab_size": 512}}}


def chat_job(folder, **changes):
    """Return a job that learns from 300 conversations after text."""
    write_tiny_data(folder)
    tiny_tokenizer().save(folder / "tokenizer.json")
    fields = {
        "tokenizer": {"file": "tokenizer.json"},
        "model__vocab_size": 320,
        "sft__steps": None,
        "sft__epochs": 2,
        "store": str(folder / "runs"),
    }
    job = tiny_job(**(fields | changes))
    job._folder = folder
    return job


def pair_job(folder, changes=None, **fields):
    """Return a job that learns from 120 pairs after text."""
    save_tokenizer(folder / "tokenizer.json")
    if not (folder / "pairs.jsonl").exists():
        lines = (f"{n} mice ran after the {n % 97} cats.\n\n" for n in range(2000))
        (folder / "text.txt").write_text("".join(lines))
        write_pairs(folder)
    whole = {
        "pretrain": {"steps": 8, "warmup_steps": 1},
        "sft": None,
        "data": {"seq_len": 96, "held_out": 0.1, "sources": [TEXT]},
        "tokenizer": {"file": "tokenizer.json"},
        "model__vocab_size": 512,
        "store": str(folder / "runs"),
    }
    prefer = {key: value for key, value in PREFER.items() if key != "steps"}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(tiny_dict(**(whole | (changes or {})), prefer=prefer | fields)))
    return load_job(path)


def rewrite(path, change):
    """Rewrite a file of JSON Lines: `change(number, record)` returns each record."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(n, line)) + "\n" for n, line in enumerate(lines)))
