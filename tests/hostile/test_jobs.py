"""Job files, overrides and recorded jobs that are too much: exit 2 with the file and the line."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from annotated_types import Le, Lt

from pion.bounded_yaml import MOST_NODES, check_yaml
from pion.errors import BadInput
from pipeline.job import Job, Price
from pipeline.job.digest import digest_job
from pipeline.job.every_field import sections_of
from pipeline.job.file import JobLoader, load_job, parse_job
from pipeline.job.mistakes import Document, beyond_limits
from pipeline.job.section import most_of
from pipeline.state.stores import FileStore
from tests.hostile.in_process import NO_FILES, ends_with, pion, refusal
from tests.paths import TESTS
from tests.support.light_run import light_run

GOOD = """\
name: tiny
model: pion-nano
tokenizer: {train: {vocab_size: 512}}
data: {seq_len: 64, sources: [{kind: text, path: corpus.txt}]}
pretrain: {steps: 20, warmup_steps: 2}
"""
LINES = GOOD.count("\n")


def aliases(levels, width, first="x"):
    """Return lines of YAML that stand for width ** levels times `first`."""
    lines = [f"a0: &a0 [{first}]"]
    for n in range(1, levels + 1):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]")
    return "\n".join(lines) + "\n"


MERGES = "m0: &m0 {k: 1}\n" + "".join(
    f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 9)
)
# Each with the line where it is refused (counted from the end of GOOD) and the reason.
JOBS = {
    "alias bomb": (aliases(30, 10), 5, "more than 10,000 values"),
    "aliases of a long text": (aliases(3, 20, "x" * 1000), 4, "more than 1,048,576 characters"),
    "merged aliases": (MERGES, 5, "more than 10,000 values"),
    "aliases that add levels": (
        "b0: &b0 [1]\n" + "".join(f"b{n}: &b{n} [*b{n - 1}]\n" for n in range(1, 90)),
        63,
        "nested deeper than 64 levels",
    ),
    "alias in itself": ("a: &a [1, [*a]]\n", 1, "an alias contains itself"),
    "alias in itself, as a key": ("a: &a {? *a : 1}\n", 1, "an alias contains itself"),
    "too many values": (f"x: [{'1,' * MOST_NODES}]\n", 1, "more than 10,000 values"),
    "nested lists": ("x: " + "[" * 100 + "]" * 100 + "\n", 1, "nested deeper than 64 levels"),
    "nested lists without an end": ("x: " + "[" * 300, 1, "nested deeper than 64 levels"),
    "nested sections": ("x: " + "{a: " * 100 + "}" * 100, 1, "nested deeper than 64 levels"),
    "nested dashes": ("x:\n  " + "- " * 3000 + "1\n", 2, "nested deeper than 64 levels"),
    "a number of 5,000 digits": (f"seed: {'9' * 5000}\n", 1, "a number of 5,000 characters"),
    "a long hexadecimal number": (
        f"seed: 0x{'f' * 500_000}\n",
        1,
        "a number of 500,002 characters",
    ),
    "a long number to the base 60": (f"seed: 1{':01' * 9999}\n", 1, "a number of 29,998"),
    "half a character": ('store: "\\ud800"\n', 1, "half a character in a text"),
    "half a character in a key": ('"\\udfff": 1\n', 1, "half a character in a text"),
    "more than 1 MiB": (f"# {'x' * (1 << 20)}\n", None, "has more than 1,048,576 bytes"),
    "a control character": ("store: a\0b\n", 1, "YAML has no character U+0000"),
    "code": ("store: !!python/object/apply:os.system [touch /tmp/x]\n", 1, "could not determine"),
    "a list as a key": ("? [1]\n: 2\n", 1, "unhashable key"),
    "many unknown keys": ("".join(f"unknown_{n}: 1\n" for n in range(500)), 1, "and 450 more"),
    "a long unknown key": (f"? {'k' * 500_000}\n: [1, 2, 3]\n", 1, "unknown key"),
}


@pytest.fixture
def job_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("attack", JOBS)
def test_a_job_file_that_is_too_much_is_refused_with_its_line(job_file, attack):
    text, line, reason = JOBS[attack]
    job_file.write_text(GOOD + text)
    message = refusal("run", job_file)
    assert str(job_file) in message
    assert reason in message
    if line is not None:
        assert f"line {LINES + line}" in message


@pytest.mark.parametrize("command", ["plan", "check", "prove"])
def test_each_command_that_reads_a_job_refuses_it(job_file, command):
    for more, override, words in (
        (aliases(30, 10), "seed=1", "more than 10,000 values"),
        ("", "pretrain.steps=2e9", "should be at most 1,000,000,000"),
    ):
        job_file.write_text(GOOD + more)
        assert words in " ".join(ends_with(2, command, job_file, override).split())


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "folder", "not UTF-8"])
def test_a_job_file_that_is_no_text_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "job.yaml"
    if kind in NO_FILES:
        NO_FILES[kind](path)
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.write_bytes(b"name: \xff\xfe")
    message = refusal("run", path)
    assert f"can't read the job file{' ' if kind == 'not UTF-8' else ': '}{path}" in message


OVERRIDES = {
    "deep lists": ("pretrain.steps=" + "[" * 100 + "]" * 100, "nested deeper than 64 levels"),
    "deep sections": ("pretrain.steps=" + "{a: " * 100 + "}" * 100, "nested deeper than 64 levels"),
    "a deep path": (".".join(["x"] * 20_000) + "=1", "nested deeper than 64 levels"),
    "an alias in itself": ("evaluate.prompts=&a [*a]", "an alias contains itself"),
    "a long number": ("seed=0x" + "f" * 5000, "a number of 5,002 characters"),
    "a long number of a source": (f"data.sources.{'9' * 5000}.weight=2", "is a list of 1"),
    "half a character": ('store="\\ud800"', "half a character in a text"),
}


@pytest.mark.parametrize("attack", OVERRIDES)
def test_an_override_that_is_too_much_is_refused(job_file, attack):
    override, reason = OVERRIDES[attack]
    message = refusal("run", job_file, override)
    assert message.startswith(f"error: override {override[:40]!r}"[:-1])
    assert reason in message


RECORDS = {
    "alias bomb": (GOOD + aliases(30, 10)).encode(),
    "deep": (GOOD + "x: " + "[" * 100 + "]" * 100).encode(),
    "large": GOOD.encode() + b"#" * (1 << 20),
    "merged aliases": (GOOD + MERGES).encode(),
    "a long number": (GOOD + f"seed: 0x{'f' * 5000}\n").encode(),
    "empty": b"",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return light_run(FileStore(tmp_path_factory.mktemp("store")))


@pytest.mark.parametrize(
    ("command", "attack"),
    [("status", attack) for attack in RECORDS]
    + [(command, "alias bomb") for command in ("checkpoints", "report", "fork")],
)
def test_a_recorded_job_that_is_too_much_stops_no_command(run, command, attack):
    run.store.write(run.key("jobs/0123.yaml"), RECORDS[attack])
    new = ["new-" + attack.replace(" ", "-")] if command == "fork" else []
    ended = pion(command, f"{run.store.url}/demo", *new)
    assert ended.code == 0 or "the job of run demo" in ended.out + ended.err


# ---------------------------------------------------------------- honest jobs


def test_a_job_of_half_the_largest_size_is_accepted(job_file):
    prompts = ["ü" * 50] * (MOST_NODES // 2 - 50)
    text = f"{GOOD}evaluate:\n  prompts: [{', '.join(prompts)}]\n"
    text += "#" * ((1 << 19) - len(text.encode()))
    job_file.write_text(text)
    assert load_job(job_file).evaluate.prompts == prompts


def test_yaml_up_to_the_bounds_is_accepted():
    nine_thousand_values = aliases(3, 14)
    for text in ("[" * 64 + "]" * 64, nine_thousand_values, "a: 1\n--- \nb: 2\n"):
        check_yaml(text, "a.yaml")


def test_aliases_may_share_a_section(job_file):
    job_file.write_text(GOOD.replace("pretrain: {", "pretrain: &p {") + "evaluate: {every: 5}\n")
    with job_file.open("a") as file:
        file.write("sft: {<<: *p, sources: [{kind: python-docs-qa}]}\n")
    job = load_job(job_file)
    assert job.sft.steps == 20


# ---------------------------------------------------------------- limits of numbers

# Every number of a job at half of its limit, as far as fields depend on each other.
HALF = (TESTS / "fixtures/half_of_limits.yaml").read_text(encoding="utf-8")


def holds_numbers(annotation):
    return annotation in (int, float) or any(map(holds_numbers, get_args(annotation)))


def number_fields(section, path=""):
    fields = section.model_fields
    for name, field in fields.items():
        below = sections_of(field.annotation)
        for inner in below:
            yield from number_fields(inner, f"{path}{name}.")
        if not below and (holds_numbers(field.annotation) or name == "prices"):
            yield f"{path}{name}", field


def refused_by_pydantic(field):
    return any(isinstance(limit, Le | Lt) for limit in field.metadata)


LIMITS = {path: most for path, field in number_fields(Job) if (most := most_of(field)) is not None}


def test_the_limits_are_those_of_the_last_version():
    """If you mean to change a limit, change the file, too."""
    assert json.loads((TESTS / "fixtures" / "largest_numbers.json").read_text()) == LIMITS


def test_every_number_of_a_job_has_a_limit():
    values_of_templates = {
        f"{stage}.template_options" for stage in ("sft", "prefer", "reinforce")
    }  # Pion passes them on, and counts nothing
    without = {path for path, field in number_fields(Job) if not refused_by_pydantic(field)}
    assert without == set(LIMITS) | values_of_templates


def with_primitives(half):
    """Return the job with primitives, which exclude experts, and with phases."""
    job = yaml.load(half, JobLoader)  # noqa: S506
    del job["model"]["experts"]
    job["model"] |= {
        "activation": "relu2",
        "primitives": {
            "n": 2048,
            "rank": 2**15,
            "top_k": 2048,
            "bands": [list(range(job["model"]["n_layers"]))],
            "ternary": True,
            "activation_bits": 8,
            "diversity_weight": 5e5,
        },
    }
    phases = [
        {"until": 0.5, "rates": {"matrix": 5e5}},
        {"top_k": 2048, "rank": 2**15, "unfreeze": [0]},
    ]
    for stage in ("pretrain", "sft", "prefer", "reinforce"):
        job[stage] |= {"primitive_weight_decay": 5e5, "phases": phases}
    job["reinforce"]["phases"] = [phases[0], {"unfreeze": [0]}]  # it samples by the whole model
    for name, source in zip(("web", "ids"), job["data"]["sources"], strict=True):
        source.pop("weight", None)  # phases with mixes have none
        source["name"] = name
    mix = {"mix": {"web": 5e8, "ids": 5e8}, "order": 500_000}
    job["pretrain"]["phases"] = [phases[0] | mix, phases[1]]
    return yaml.safe_dump(job)


def with_lora(half):
    """Return the job with scaled positions and slots, clean text, passes in place of steps, and
    LoRA."""
    job = yaml.load(half, JobLoader)  # noqa: S506
    for part in ("experts", "windows", "values", "wiring"):  # slots exclude them
        del job["model"][part]
    job["model"]["slots"] = {"per_segment": 512, "segment": 2**19, "window": 2**19}
    job["model"]["rope_scaling"] = {
        "factor": 5e5,
        "original_max_position_embeddings": 2**19,
        "low_freq_factor": 1,
        "high_freq_factor": 5e5,
    }
    del job["data"]["sources"][1]  # shards, which can't be cleaned
    job["data"]["clean"] = {
        "near": 0.5,
        "min_words": 500_000_000,
        "max_words": 500_000_000,
        "max_repetition": 0.5,
    }
    for stage in ("sft", "prefer", "reinforce"):
        job[stage] = {
            "epochs": 5000,
            **{name: job[stage][name] for name in ("sources", "rewards") if name in job[stage]},
            # All other dropout is a mistake.
            "lora": {"rank": 2**14, "alpha": 5e5, "dropout": 0},
        }
    weights = {"desirable_weight": 5e5, "undesirable_weight": 5e5}
    job["prefer"] |= {"loss": "apo-zero", **weights}
    return yaml.safe_dump(job)


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    folder, jobs = tmp_path_factory.mktemp("half"), {}
    shapes = {"experts": HALF, "primitives": with_primitives(HALF), "additions": with_lora(HALF)}
    for name, text in shapes.items():
        (folder / f"{name}.yaml").write_text(text)
        jobs[name] = load_job(folder / f"{name}.yaml")
    return jobs


def test_jobs_with_every_number_at_half_of_its_limit_are_accepted(halves):
    given = yaml.safe_dump(
        [half.model_dump(mode="json", exclude_unset=True) for half in halves.values()]
    )
    names = {path.rpartition(".")[2] for path, _ in number_fields(Job)} - {"template_options"}
    assert not [name for name in names if not re.search(rf"\b{name}:", given)]
    assert all(digest_job(half).stages for half in halves.values())


def test_a_number_beyond_its_limit_is_a_mistake(halves):
    for field, most in LIMITS.items():
        shape = "primitives" if "primitive" in field or "phases" in field else "experts"
        if any(name in field for name in ("lora", "rope_scaling", "epochs", "slots", "clean")):
            shape = "additions"
        job = halves[shape].model_copy(deep=True)
        *parents, name = field.split(".")
        section = job
        for parent in parents:
            section = getattr(section, parent)
            if isinstance(section, list):
                section = next(source for source in section if hasattr(source, name))
        before, beyond = getattr(section, name), most + 1
        if field == "prices":
            beyond = {"A40": Price(spot=1, on_demand=beyond)}
        elif isinstance(before, tuple):
            beyond = ((0, beyond),) if isinstance(before[0], tuple) else (0, beyond)
        elif isinstance(before, dict):
            beyond = {"matrix": beyond}
        setattr(section, name, beyond)
        (mistake,) = beyond_limits(job, Document({}, {field: 7}))
        assert mistake.path.startswith(".".join(parents)), field
        assert name in mistake.path, field
        assert mistake.text == f"{most + 1} should be at most {most:,}", field


def test_the_limits_are_not_applied_to_what_a_run_recorded(job_file):
    beyond = GOOD.replace("steps: 20,", "steps: 2000000000,")
    assert parse_job(beyond, "the record").section("pretrain").steps == 2_000_000_000
    job_file.write_text(beyond)
    with pytest.raises(BadInput, match=r"line 5 +pretrain.steps: 2000000000 should be at most 1,0"):
        load_job(job_file)


@pytest.mark.parametrize(
    "attack", ["seed=-99999999999999999999", "model.values={layers: [0], tables: [1000000000000]}"]
)
def test_numbers_that_made_a_bug_are_refused(job_file, attack):
    message = refusal("run", job_file, attack)
    assert "should be at" in message or "counting from 0 without gaps" in message
