"""The text of the model card: the README.md of the published folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from pion.config.model_config import ModelConfig
from pion.train.optimizers import OPTIMIZERS
from pipeline.base.licence import conditions
from pipeline.console.formats import duration, short_amount
from pipeline.job import Job, Publish
from pipeline.report.card_sections import (
    adapter_sections,
    base_in_words,
    base_section,
    gguf_section,
    hub_name,
)
from pipeline.report.cleaning import cleaning_in_words
from pipeline.report.history import STAGE_NAMES, Row, RunHistory
from pipeline.report.phases import phases_in_words
from pipeline.report.preferences import preference_training
from pipeline.report.published_by import run_id
from pipeline.report.result_tables import result_blocks
from pipeline.report.rewards import reward_training

if TYPE_CHECKING:
    from pion.config.lora import Adapter
    from pion.formats.export import RoundingCost
    from pipeline.base.licence import Terms

# Data sets whose terms limit what may be done with a model that is trained on them.
TERMS = {
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": "parts of it are for non-commercial use only",
}

# What a source of the demo has, by its kind, and what learns from the sources of a section.
# What cards call the activations of feed-forward layers.
ACTIVATIONS = {
    "swiglu": "SwiGLU",
    "geglu": "GEGLU",
    "relu2": "squared ReLU",
    "gelu": "GELU",
    "gelu_tanh": "GELU",
}
DEMO = {
    "python-docs": "Docstrings, comments and `pydoc` topics of Python's standard library",
    "python-docs-qa": "Questions about Python's standard library, answered by its docstrings",
    "python-docs-prefer": "Pairs of answers to questions about Python's standard library",
}
LEARNED_BY = {
    "data": "pretraining",
    "sft": "fine-tuning",
    "prefer": "preferences",
    "reinforce": "prompts for rewards",
}


@dataclass(frozen=True)
class CardExtras:
    """What only some cards have: what rounding to bfloat16 has cost, the published adapter, the
    terms of the model that the run started from, whether there is a GGUF file, and for which texts
    llama.cpp may give other ids."""

    rounding: RoundingCost | None = None
    adapter: Adapter | None = None
    terms: Terms | None = None
    gguf: bool = False
    caveat: str = ""


def model_card(
    history: RunHistory,
    config: ModelConfig,
    *,
    parameters: int,
    vocab_size: int,
    extra: CardExtras = CardExtras(),
) -> str:
    """Return the card as Markdown with YAML front matter.

    `vocab_size` counts the published embedding rows, `parameters` the published weights (tied
    weights once; of an adapter, its own alone). The card leaves out what the run has not recorded.
    The same history gives the same card.
    """
    job, publish = history.job, history.job.publish
    assert publish is not None
    blocks = result_blocks(job, history.results, code="`{}`", brief=True)
    results = [block if isinstance(block, str) else table(*block) for block in blocks]
    parts = [
        front_matter(job, extra.terms),
        f"# {job.name}",
        # What the licence of the start asks for at the top of the card.
        " ".join([] if extra.terms is None else conditions(extra.terms, job.name)),
        _introduction(job, config, parameters, extra),
        "![Training and held-out loss](loss.png)",
        _usage(job, publish.to, config)
        if extra.adapter is None
        else adapter_sections(publish.to, extra.adapter),
        gguf_section(job, publish.to, extra.caveat) if extra.gguf else "",
        "\n\n".join(["## Results", *results]) if results else "",
        _architecture(config, parameters, vocab_size, _weights(publish, config, extra)),
        _training(history, with_cost=publish.cost),
        base_section(job, extra.terms),
        _limitations(job, config),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def source_lines(job: Job) -> list[str]:
    """Return one line for each data source, by stage, and for each mix of them. Local paths are cut
    to the file name."""
    lines = []
    sources: list[tuple[str, Any]] = [*job.sources()]
    for key, source in sources:
        section = key.partition(".")[0]
        if section == "data" and not job.pretrain:
            continue
        if source.kind in DEMO:
            source_words = DEMO[source.kind]
        elif source.kind in ("hub", "hub-npy"):
            subset = f", {source.subset}" if getattr(source, "subset", None) else ""
            source_words = f"[{source.repo}](https://huggingface.co/datasets/{source.repo}){subset}"
            source_words += f" ({TERMS[source.repo]})" if source.repo in TERMS else ""
        else:
            source_words = f"`{PurePath(source.path).name}` ({source.kind} files)"
        share = f", weight {source.weight:g}" if source.weight != 1 else ""
        share += f", called {source.name}" if section == "data" and job.mixes else ""
        lines.append(f"{source_words} ({LEARNED_BY[section]}{share})")
    phases = phases_in_words(job)
    return [
        *lines,
        *(f"pretraining from step {step:,} on: {mix_words}" for step, mix_words in phases),
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int = 1) -> str:
    """Return a Markdown table. Columns from `numbers_from` are aligned right."""
    rule = ["---" if i < numbers_from else "---:" for i in range(len(header))]
    shown = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *shown))


def hardware_lines(attempts: Sequence[Row]) -> list[str]:
    """Return `2 × NVIDIA A40, 3 h 10 min` for each kind of machine that the run has been on."""
    seconds: dict[str, float] = {}
    for attempt in attempts:
        workers = attempt.get("workers") or 1
        device = str(attempt.get("device") or "unknown hardware")
        name = f"{workers} × {device}" if workers > 1 else device
        seconds[name] = seconds.get(name, 0.0) + attempt["seconds"]
    return [f"{name}, {duration(spent)}" if spent else name for name, spent in seconds.items()]


def front_matter(job: Job, terms: Terms | None = None) -> str:
    """Return the YAML block that the Hub reads; `terms` are those of the run's start."""
    from huggingface_hub import ModelCardData

    assert job.publish is not None
    licence: Mapping[str, Any] = {} if terms is None else terms.front_matter
    if job.publish.license is not None:
        licence = {"license": job.publish.license}
    datasets = sorted({source.repo for _, source in job.sources() if hasattr(source, "repo")})
    data = ModelCardData(
        **licence,
        library_name="peft" if job.publish.adapter else "transformers",
        base_model=None if job.base is None else hub_name(job.base.source, job.base.commit),
        pipeline_tag="text-generation",
        tags=["pion", *(["conversational"] if job.converses else [])],
        datasets=datasets or None,
        model_name=job.name,
        pion_run=run_id(job),
    )
    return f"---\n{data.to_yaml()}\n---"


def _introduction(job: Job, config: ModelConfig, parameters: int, extra: CardExtras) -> str:
    assert job.publish is not None
    base = job.base
    start = f"from {base_in_words(base.source, base.commit)}" if base else "from random weights"
    article = "A conversational" if job.converses else "A base"
    steps = " and ".join(f"{STAGE_NAMES[stage]}" for stage in job.train_stages)
    tokens = short_amount(sum(job.trained_tokens(stage) or 0 for stage in job.train_stages))
    sentence = (
        f"{article} language model of **{short_amount(parameters)} parameters**, trained {start} "
        f"by {steps} on {tokens} tokens. {_runs_in(config)}"
    )
    if extra.adapter is not None:
        sentence = (
            f"A LoRA adapter of **{short_amount(parameters)} parameters** for a base model, "
            f"trained {start} by {steps} on {tokens} tokens."
        )
    return (
        f"{job.publish.description.strip()}\n\n{sentence}" if job.publish.description else sentence
    )


def _runs_in(config: ModelConfig) -> str:
    """Return what runs the model, and why it needs its own code if it does."""
    from pion.formats.huggingface.architectures import architecture_of, nearest_misfit

    architecture = architecture_of(config)
    if architecture.stock:
        return (
            f"It is a stock `{architecture.name}`: transformers and lm-evaluation-harness load it "
            "without custom code."
        )
    return (
        f"No stock architecture of transformers computes it exactly ({nearest_misfit(config)}), "
        "so it comes with its code: modelling files, which transformers and lm-evaluation-harness "
        "run with `trust_remote_code=True`. Read them first. They need torch 2.9 and transformers "
        "5.17, or newer."
    )


def _usage(job: Job, to: str, config: ModelConfig) -> str:
    from pion.formats.huggingface.architectures import architecture_of

    trust = "" if architecture_of(config).stock else ", trust_remote_code=True"
    target = to.removeprefix("hf://")
    if job.converses:
        prompt = (
            f'messages = [{{"role": "user", "content": {_prompt(job, "What can you do?")}}}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
            ")"
        )
    else:
        prompt = f'inputs = tokenizer({_prompt(job, "Once upon a time")}, return_tensors="pt")'
    command = "chat" if job.converses else "generate"
    return f"""## How to use it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{target}"{trust})
tokenizer = AutoTokenizer.from_pretrained("{target}"{trust})

{prompt}
output = model.generate(**inputs)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

Or with Pion: `pion {command} {to}`"""


def _prompt(job: Job, default: str) -> str:
    """Return the first prompt of the evaluation, as Python and JSON write it."""
    return json.dumps(next(iter(job.evaluate.prompts), default))


def _architecture(config: ModelConfig, parameters: int, vocab_size: int, weights: str) -> str:
    from pion.formats.huggingface.architectures import architecture_of

    architecture = architecture_of(config)
    kind = "stock" if architecture.stock else "modelling files in this repository"
    shape = [
        ("architecture", f"`{architecture.name}` ({kind})"),
        ("parameters", f"{parameters:,}"),
        ("layers", f"{config.n_layers}"),
        ("width", f"{config.d_model:,}"),
        ("attention heads", f"{config.n_heads}, of width {config.head_dim}"),
        ("key/value heads", f"{config.n_kv_heads}"),
        *_of_parts(config, apart=False),
        *_feedforward(config, parameters),
        *([("gates", "one in each layer; used with `pion generate --skip-above`")] * config.gates),
        *_of_parts(config, apart=True),
        ("vocabulary", f"{vocab_size:,} (BPE)"),
        ("context", f"{config.seq_len:,} tokens"),
        ("positions", _positions(config)),
        ("weights", weights),
    ]
    return f"## Model\n\n{table(('shape', ''), shape)}"


def _weights(publish: Publish, config: ModelConfig, extra: CardExtras) -> str:
    tied = ", embedding and head tied" if config.tie_embeddings else ""
    if (cost := extra.rounding) is not None:
        return (
            f"bfloat16{tied}; rounded after the results above. On {cost.tokens:,} held-out tokens, "
            f"logits differ by at most {cost.logits:.2g}, and bits per byte were "
            f"{cost.before:.4f} before and are {cost.after:.4f} after"
        )
    if publish.embeddings == "float32":
        return f"float32{tied}"
    return (
        f"float32{tied}; rows of tokens were rounded to {publish.embeddings} after the results "
        "above"
    )


def _positions(config: ModelConfig) -> str:
    if config.positions == "learned":
        return f"learned, one vector for each of {config.seq_len:,}"
    rotary, scaling = f"rotary, θ = {config.rope_theta:,.0f}", config.rope_scaling
    if scaling is not None:
        rotary += f", scaled by {scaling.factor:g}"
        if scaling.kind != "linear":
            rotary += f" from a context of {scaling.original_max_position_embeddings:,} tokens"
    if config.heads is not None and config.heads.unrotated_layers:
        rotary += f", not in layers {', '.join(map(str, config.heads.unrotated_layers))}"
    theta = None if config.windows is None else config.windows.rope_theta
    return rotary if theta is None else f"{rotary}; with a window, θ = {theta:,.0f}"


def _of_parts(config: ModelConfig, *, apart: bool) -> list[tuple[str, str]]:
    """Return the rows of the model's parts; which layers attend stands before how far they see."""
    parts = sorted(config.parts(), key=lambda named: named[0] != "wiring")
    return [row for _, part in parts if part.apart == apart and (row := part.card()) is not None]


def _feedforward(config: ModelConfig, parameters: int) -> list[tuple[str, str]]:
    from pion.formats.huggingface.architectures import architecture_of

    experts, part, stock = config.experts, config.feedforward_part, architecture_of(config).stock
    if experts is None or config.feedforward != "experts":
        kind = ACTIVATIONS[config.activation]
        rows = [("feed-forward width", f"{config.d_ff:,} ({kind})")]
        mixed = None if part is None else part.matrices(multiplied_out=stock)
        if mixed is not None:
            rows.append(("feed-forward matrices", mixed))
        if experts is not None:
            rows.append(("recipes in a layer", f"{experts.n}, {experts.top_k} per token"))
        return rows
    from pion.model.params_and_flops import cost_of

    cost = cost_of(config)
    used = parameters - (cost.all_params - cost.active_params)
    rows = [
        ("parameters that a token uses", f"{used:,}"),
        ("experts", f"{experts.n} of width {config.d_ff:,} (SwiGLU), {experts.top_k} per token"),
    ]
    if experts.shared:
        note = "; the file has a copy in each routed expert" if stock else ""
        rows.append(("shared experts", f"{experts.shared} of width {experts.d_shared:,}{note}"))
    return rows


def _training(history: RunHistory, *, with_cost: bool) -> str:
    job = history.job
    rows = []
    for stage in job.train_stages:
        section = job.section(stage)
        optimizer = OPTIMIZERS[section.optimizer].title
        if (lora := job.lora(stage)) is not None:
            optimizer = f"LoRA of rank {lora.rank}, AdamW"
        if section.optimizer == "muon":
            optimizer = f"Muon {section.muon_lr:g}, AdamW"
        schedule = {"wsd": "warm-up–stable–decay"}.get(section.schedule, section.schedule)
        rows.append(
            (
                STAGE_NAMES[stage],
                f"{section.total_steps:,}",
                f"{section.global_batch} × {job.seq_len(stage):,}",
                short_amount(job.trained_tokens(stage) or 0),
                f"{optimizer} {section.lr:g} → {section.min_lr:g}, {schedule}",
            )
        )
    header = ("stage", "steps", "batch (sequences × tokens)", "tokens", "optimizer, learning rate")
    hardware = "; ".join(hardware_lines(history.attempts()))
    left_out = "; ".join(sentence for _, sentence in history.left_out())
    cost = history.costs.describe()
    cleaned = cleaning_in_words(history.text)
    parts = [
        "## Training",
        "Data:\n\n" + "\n".join(f"- {line}" for line in source_lines(job)),
        f"The text was cleaned before training: {cleaned}." if cleaned else "",
        table(header, rows),
        preference_training(job, history.results, history.head, history.url),
        reward_training(job),
        f"Trained on {hardware}. Seed {job.seed}." if hardware else "",
        f"Left out, because steps on them went wrong: {left_out}." if left_out else "",
        f"All machines together, from boot to publishing: {cost}." if with_cost else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _limitations(job: Job, config: ModelConfig) -> str:
    items = [
        "It is a small model: it writes fluent text about what it has read, and invents facts. "
        "Don't rely on what it says."
    ]
    if job.model.base:
        items += [
            "What the model that it started from has learned, and how safe it was made, is said by "
            "those who trained that model. The training described here can have undone some of it.",
            f"It sees at most {config.seq_len:,} tokens of context.",
        ]
    else:
        items += [
            "It has had no safety training, so it repeats the biases and errors of its data.",
            f"It only knows the language and subjects of its training data, and sees at most "
            f"{config.seq_len:,} tokens of context.",
        ]
    if not job.converses:
        items.insert(1, "It is a base model: it continues text and does not follow instructions.")
    return "## Limitations\n\n" + "\n".join(f"- {item}" for item in items)
