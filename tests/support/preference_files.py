"""Small files of preferences, and the rows that Pion makes of them."""

import json
from functools import partial

from pion.data.chat.chat_format import ChatFormat
from pion.data.preference.rendering import preference_format
from pion.data.shards import Manifest, Rows
from pion.data.tokens.tokenizer import Tokenizer
from pipeline.data.preferences import preferences
from pipeline.data.preferences_to_rows import PreferenceRows, write_preference_rows
from pipeline.data.remarks import Remarks
from pipeline.data.sources import find_input
from pipeline.data.splits import RowFormat
from pipeline.job import JsonlFiles
from tests.support.corpora import make_job, save_tokenizer, sentences, shard_path, write_corpus
from tests.support.tokenizer_kinds import write_files

KEY = "prefer.sources.0"


def pair_of(number, **more):
    """Return an explicit pair; every number has another prompt and other answers."""
    chosen, rejected = sentences(10_000 + number, 1), sentences(20_000 + number, 1)
    return {"prompt": sentences(number, 1), "chosen": chosen, "rejected": rejected, **more}


def label_of(number):
    return {
        "prompt": sentences(number, 1),
        "completion": sentences(30_000 + number, 1),
        "label": number % 3 > 0,
    }


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_rows(folder, source=None, template=None, out="rows", **how):
    """Write the rows of a source (prefs.jsonl in `folder`, unless one is given) below `out`.

    `template` is the kind of tokenizer and the template; None: Pion's own. `how` replaces
    seq_len, context, held_out, seed and shard_rows.
    """
    settings = {"seq_len": 256, "context": 128, "held_out": 0.1, "seed": 1, "shard_rows": 4} | how
    if not (folder / "corpus.jsonl").exists():
        write_corpus(folder / "corpus.jsonl", 1)
    job = make_job(folder)
    source = source or JsonlFiles(kind="jsonl", path="prefs.jsonl")
    found = find_input(job, source, KEY)
    tokenizer = tokenizer_in(folder / "model", template)
    remarks = Remarks(tokenizer.replaced(), found.left_out)
    written = ChatFormat(folder / "model" / "tokenizer.json", tokenizer)
    form = preference_format(written, settings["seq_len"], settings["context"])
    rows = RowFormat(settings["seq_len"], settings["shard_rows"], "key")
    to_rows = PreferenceRows(tokenizer, form, rows, settings["held_out"], settings["seed"], KEY)
    for split in ("train", "held_out"):
        (folder / out / split).mkdir(parents=True, exist_ok=True)
    read = preferences(job, found, remarks)
    summary, _ = write_preference_rows(read, to_rows, folder / out, lambda message: None)
    return summary


def tokenizer_in(folder, template):
    """Write the files of a model, unless they are there; return its tokenizer."""
    folder.mkdir(exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        if template is None:
            save_tokenizer(folder / "tokenizer.json")
        else:
            write_files(template[0], folder, template[1])
    return Tokenizer.from_file(folder / "tokenizer.json")


def read_rows(folder, split, out="rows"):
    """Return the rows of a split."""
    place = folder / out / split
    return Rows(Manifest.read(place / "manifest.json"), partial(shard_path, place))


def sequences_in(folder, split, out="rows"):
    """Return the prompt, the learned text and the side of every sequence, in the order of rows."""
    tokenizer = Tokenizer.from_file(folder / "model" / "tokenizer.json")
    rows = read_rows(folder, split, out)
    found = []
    for shard, count in enumerate(rows.manifest.shard_rows):
        for row in map(partial(rows.row, shard), range(count)):
            assert row.documents is not None
            assert row.sides is not None
            for number, side in enumerate(row.sides.tolist()):
                inside = row.documents == number
                ids, targets = row.tokens[inside], row.targets[inside]
                n = len(ids) - int((targets >= 0).sum())
                decode = partial(tokenizer.decode, specials=True)
                found.append((decode(ids[:n].tolist()), decode(ids[n:].tolist()), side > 0))
    return found
