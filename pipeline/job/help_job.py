"""docs/jobs.md and `pion run --help-job`: every field of a job file, in words.

python -m pipeline.job.help_job > docs/jobs.md
"""

from __future__ import annotations

import io
import re
from collections import defaultdict

from pipeline.job.every_field import PARTS, Chapter, JobField, chapters

HEAD = """\
<!-- Written by `python -m pipeline.job.help_job > docs/jobs.md`. Change pipeline/job/, not this file. -->

# The job file

A job is one YAML file. It names the model, the training data, the training settings, and the place
where the run's state is stored. `pion run JOB` keeps running until everything in the file is done.

```yaml
{whole}```

Most other fields have a default. The tables below have the default
after the type. A field that must be given is `required`.
`jobs/` has more examples, and `pion run --help-job` prints this reference in a terminal.

## The fields that you will set

{first}

[sizing.md](sizing.md) says how much text, which model and which vocabulary.

## How a job is read

* On the command line, `key=value` replaces any field: `pion run job.yaml pretrain.lr=1e-3`.
  The sources in a list are numbered from 0: `data.sources.0.weight=2`. The tables below write `N`
  for this number. The value `null` unsets a field.
* Paths of inputs are relative to the job file. Paths of outputs (`store`, `publish.to`) are relative
  to the working directory.
* Numbers may be written as `22_500` or `3e-4`.
* `pion check JOB` finds mistakes without starting anything. For each misspelled key, wrong type or
  invalid value, it prints the line number. For a misspelled key it also names the nearest valid
  key. For a key of TRL, axolotl or LLaMA-Factory, `pion check` says what Pion calls the key, or what to
  do instead.
* `pion schema > pion-schema.json` writes the JSON schema of a job, with which editors complete and check
  a job next to the file that begins with `# yaml-language-server: $schema=pion-schema.json`. `pion new`
  writes this line if the file is there; write the file again after an update.

Below a table stand the fields that a section has *as in* an earlier one. A default in parentheses
is the section's own. There stands, too, what happens to finished work when you change a field:

{parts}

Sections: {sections}.
"""  # noqa: E501

WHOLE = """\
name: my-run
model: pion-nano
tokenizer: {train: {vocab_size: 8192}}
data:
  sources: [{kind: text, path: my-texts}]
pretrain:
  steps: 5000
"""

# What most jobs set. tests/pipeline/job/test_help_job.py compares the names with the fields.
FIRST = {
    "name": "a name for the run; its state is in `runs/NAME`",
    "model": "a preset ([models.md](models.md)), or `{from: user/name}` for a model of others "
    "([fine-tune.md](fine-tune.md))",
    "tokenizer": "`{train: {vocab_size: 8192}}` for a vocabulary of your own text; a model of "
    "others brings its own",
    "data.sources": "where the text is",
    "data.seq_len": "how many tokens a row has, and so how far the model sees",
    "pretrain.steps": "how long to train",
    "pretrain.global_batch": "rows per step, on any hardware",
    "pretrain.lr": "the learning rate",
    "sft.sources": "where the conversations are",
    "publish.to": "a folder, or `hf://user/name`",
    "store": "where the state is kept: `s3://bucket/prefix` or `hf://user/repo` if machines vanish",
    "budget.dollars": "what the run may cost on rented machines",
}

# By the section's path, or the path of the list of sources and the kind.
EXAMPLES = {
    "": """\
name: my-run
seed: 7
store: s3://my-bucket/runs
prices: {A40: 0.4, L40S: {spot: 0.5, on_demand: 0.9}}
""",
    "model": """\
model: {preset: pion-small, seq_len: 4096}   # or only the name: `model: pion-small`
# Or start from a trained model (pion help fine-tune): model: {from: user/name}
""",
    "tokenizer": """\
tokenizer: {file: tokenizer.json}
""",
    "data": """\
data:
  seq_len: 1024
  sources:
    - {kind: text, path: my-texts, weight: 3}
    - {kind: hub, repo: user/web-texts}
""",
    "data.sources/python-docs": "{kind: python-docs, code: true}",
    "data.sources/text": "{kind: text, path: notes/*.txt, split: paragraph}",
    "data.sources/jsonl": "{kind: jsonl, path: crawl.jsonl.gz, field: body}",
    "data.sources/parquet": "{kind: parquet, path: crawl/, field: body}",
    "data.sources/npy": "{kind: npy, path: shards/}",
    "data.sources/bin": "{kind: bin, path: shards/*.bin}",
    "data.sources/hub": "{kind: hub, repo: user/texts, split: train, max_documents: 100000}",
    "data.sources/hub-npy": "{kind: hub-npy, repo: user/shards, max_shards: 20}",
    "pretrain": """\
pretrain:
  steps: 22_500
  global_batch: 64
  optimizer: muon
  lr: 1e-3
""",
    "sft": """\
sft:
  steps: 3000
  global_batch: 16
  lora: {rank: 16, alpha: 32, targets: all-linear}
  sources: [{kind: jsonl, path: talks.jsonl}]
""",
    "sft.sources/python-docs-qa": "{kind: python-docs-qa}",
    "sft.sources/jsonl": "{kind: jsonl, path: talks/*.jsonl, weight: 2}",
    "sft.sources/parquet": "{kind: parquet, path: talks.parquet}",
    "sft.sources/hub": "{kind: hub, repo: teknium/OpenHermes-2.5, revision: main}",
    "prefer": """\
prefer:
  loss: dpo-norm
  epochs: 1
  sources: [{kind: jsonl, path: pairs.jsonl}]
""",
    "prefer.sources/python-docs-prefer": "{kind: python-docs-prefer, better: right}",
    "prefer.sources/jsonl": "{kind: jsonl, path: pairs/*.jsonl}",
    "prefer.sources/parquet": "{kind: parquet, path: pairs.parquet}",
    "prefer.sources/hub": "{kind: hub, repo: HuggingFaceH4/ultrafeedback_binarized, "
    "split: train_prefs}",
    "reinforce": """\
reinforce:
  sources: [{kind: jsonl, path: questions.jsonl}]
  rewards: [number, {kind: python, path: rewards.py, function: polite, weight: 0.5}]
""",
    "reinforce.sources/python-docs-qa": "{kind: python-docs-qa}",
    "reinforce.sources/jsonl": "{kind: jsonl, path: questions/*.jsonl}",
    "reinforce.sources/parquet": "{kind: parquet, path: questions.parquet}",
    "reinforce.sources/hub": "{kind: hub, repo: openai/gsm8k, subset: main}",
    "reinforce.rewards/number": "{kind: number}",
    "reinforce.rewards/math": "{kind: math}",
    "reinforce.rewards/exact": "{kind: exact, weight: 2}",
    "reinforce.rewards/regex": "{kind: regex, pattern: '[A-D]'}",
    "reinforce.rewards/json": "{kind: json, keys: [name, age]}",
    "reinforce.rewards/python": "{kind: python, path: rewards.py, function: polite}",
    "evaluate": """\
evaluate:
  prompts: ["The meaning of life is", "Once upon a time"]
  packs: [questions.jsonl]
  core: {path: eval_bundle.zip, items: 500}
  lm_eval: {tasks: [arc_easy, hellaswag], limit: 500}
""",
    "publish": """\
publish:
  to: hf://user/my-model
  license: apache-2.0
  require: ["bits_per_byte < 1.2"]
""",
    "checkpoint": """\
checkpoint:
  every_seconds: 120
  keep: {last: 3, every: 1000, best: true}
""",
    "hardware": """\
hardware: {workers: 2, micro_batch: 8, deterministic: true}
""",
    "budget": """\
budget: {dollars: 5}
""",
    "deadline": """\
deadline: {hours: 42}                    # or: deadline: {at: 2026-12-01T18:00Z, margin: 3600}
""",
    "log": """\
log: {every: 50, tensorboard: logs}
""",
}


PRESENCE = {
    "": "These keys are at the top level of the file.",
    "required section": "This section is required.",
    "optional section": "This section is optional. Without it, Pion skips the stage.",
}


def reference() -> str:
    """Return the text of docs/jobs.md."""
    links = [f"[`{c.path}`](#{c.path})" for c in chapters() if c.path and c.kind is None]
    rows = [f"| {part} | {meaning} |" for part, meaning in PARTS.items()]
    parts = "\n".join(["| | when you change the field |", "|---|---|", *rows])
    first = "\n".join(f"* `{field}`: {what}." for field, what in FIRST.items())
    head = (
        HEAD.replace("{whole}", WHOLE)
        .replace("{first}", first)
        .replace("{sections}", ", ".join(links))
        .replace("{parts}", parts)
    )
    told: dict[tuple[str | None, ...], tuple[str, str]] = {}
    return "\n".join([head, *(_chapter(chapter, told) for chapter in chapters())])


def _chapter(chapter: Chapter, told: dict[tuple[str | None, ...], tuple[str, str]]) -> str:
    """Return a chapter's text, whose table leaves out fields that an earlier chapter has.

    `told` has the link to the chapter and the default of each field so far, and is added to.
    """
    if chapter.kind is not None:
        title = f"`kind: {chapter.kind}` in `{chapter.path}`"
        heading = f"### {title}"
        example = f"- {EXAMPLES[f'{chapter.path}/{chapter.kind}']}\n"
        meaning = f"{chapter.meaning}."
    else:
        title = f"`{chapter.path}`" if chapter.path else "The top of the file"
        heading = f"## {title}"
        example = EXAMPLES[chapter.path]
        meaning = f"{chapter.meaning[0].upper()}{chapter.meaning[1:]}."
        if chapter.presence != "section" and chapter.path not in ("tokenizer", "deadline"):
            meaning += f" {PRESENCE[chapter.presence]}"
    link = f"[{title}](#{re.sub(r'[^a-z0-9_ -]', '', title.lower()).replace(' ', '-')})"
    rows: list[str] = []
    by_part, again = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for field in chapter.fields:
        name = field.path.removeprefix(chapter.path).removeprefix(".N").removeprefix(".")
        key = chapter.kind, name, field.type, field.meaning, field.part
        where, default = told.setdefault(key, (link, field.default))
        if where == link:
            by_part[field.part].append(f"`{name}`")
            rows.append(_row(field))
        else:
            own = "" if default == field.default else f" ({_default(field)})"
            again[where].append(f"`{name}`{own}")
    parts = [f"{heading}\n\n{meaning}\n\n```yaml\n{example}```\n"]
    if rows:
        *few, (most, _) = sorted(by_part.items(), key=lambda item: len(item[1]))
        said = [f"{', '.join(names)}: {part}. " for part, names in few]
        parts.append(f"| key | type, default | meaning |\n|---|---|---|\n{''.join(rows)}")
        parts.append(f"{''.join(said)}All{' others' if few else ''}: {most}.\n")
    elif chapter.kind:
        parts = [f"{title}: `{example[2:-1]}`.\n"]
    return "\n".join(
        [*parts, *(f"As in {where}: {', '.join(names)}.\n" for where, names in again.items())]
    )


def _default(field: JobField) -> str:
    plain = field.default in ("required", "unset", "empty")
    return field.default if plain else f"`{field.default}`"


def _row(field: JobField) -> str:
    choices = field.type.split(" | ")
    kind = " or ".join(f"`{c}`" for c in choices) if len(choices) > 1 else field.type
    meaning, _, unset = field.meaning.rpartition("; unset: ")
    moved = bool(meaning) and field.default == "unset"  # what it is if unset, to the type
    words = (meaning if moved else field.meaning).replace("|", "\\|")
    default = unset if moved else _default(field)
    return f"| `{field.path}` | {kind}{'' if default == 'unset' else f', {default}'} | {words} |\n"


if __name__ == "__main__":
    print(reference(), end="")


COLUMNS = (("key", 5), ("type", 3), ("default", 3), ("meaning", 7), ("part", 2))


def help_job(width: int | None = None) -> str:
    """Return tables `width` columns wide, or one line a field for other programs to read."""
    if width is not None:
        return _tables(width)
    lines = [f"# {part}: {meaning}" for part, meaning in PARTS.items()]
    for chapter in chapters():
        lines += ["", f"# {chapter.title}"]
        lines += [
            f"{f.path}  ({f.type}; {f.default}; {f.part})  {f.meaning}" for f in chapter.fields
        ]
    return "\n".join(lines).strip()


def _tables(width: int) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=io.StringIO(), width=width, force_terminal=True, record=True)
    for part, meaning in PARTS.items():
        console.print(Text.assemble((part, "bold"), f": {meaning}"))
    console.print()
    for chapter in chapters():
        title = Text(chapter.title)
        table = Table(title=title, title_justify="left", box=None, expand=True, pad_edge=False)
        for name, ratio in COLUMNS:
            table.add_column(name, ratio=ratio, overflow="fold", header_style="dim")
        for f in chapter.fields:
            cells = [Text(cell) for cell in (f.path, f.type, f.default, f.meaning, f.part)]
            cells[0].stylize("bold")
            table.add_row(*cells)
        console.print(table)
        console.print()
    return console.export_text(styles=True).rstrip()
