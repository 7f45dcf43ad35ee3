"""A job file is read as people mean it, and every mistake in it is reported at once."""

import json
import re
from pathlib import Path

import pytest

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.job.file import job_text, load_job, parse_job
from pipeline.job.help import help_job

GOOD = """\
name: tiny
model: pion-nano
tokenizer:
  train: {vocab_size: 512}
data:
  seq_len: 64
  sources:
    - kind: text
      path: corpus.txt
pretrain:
  steps: 20
  warmup_steps: 2
"""


@pytest.fixture
def job_file(tmp_path: Path):
    def write(text: str = GOOD, name: str = "job.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(BadInput) as refused:
        load_job(path, overrides)
    assert refused.value.exit_code == 2
    return str(refused.value)


# ---------------------------------------------------------------- what is read


def test_a_valid_file_becomes_a_job_that_knows_its_folder(job_file, tmp_path):
    job = load_job(job_file())
    assert isinstance(job, Job)
    assert job.model_config_resolved().d_model == 384
    assert job.input_path("corpus.txt") == tmp_path / "corpus.txt"


@pytest.mark.parametrize("written", ["3e-4", "3E-4", "+3e-4", "0.3e-3", ".3e-3", "3.e-4", "0.0003"])
def test_numbers_with_an_exponent_are_numbers_in_the_file_and_in_overrides(job_file, written):
    path = job_file(f"{GOOD}  lr: {written}\n")
    assert load_job(path).pretrain.lr == pytest.approx(3e-4)
    assert load_job(job_file(), [f"pretrain.lr={written}"]).pretrain.lr == pytest.approx(3e-4)


def test_a_whole_number_may_be_written_with_an_exponent_or_underscores(job_file):
    assert load_job(job_file(), ["pretrain.steps=1e3"]).pretrain.steps == 1000
    assert load_job(job_file(), ["pretrain.steps=22_500"]).pretrain.steps == 22_500


def test_overrides_reach_into_sections_list_items_and_absent_sections(job_file):
    job = load_job(
        job_file(),
        [
            "name=other",
            "data.sources.0.weight=2",
            "checkpoint.keep.last=5",
            "model.softcap=30",
            "evaluate.prompts=[Once upon, 'def f']",
            "pretrain.init_from=null",
        ],
    )
    assert (job.name, job.data.sources[0].weight, job.checkpoint.keep.last) == ("other", 2, 5)
    assert (job.model.preset, job.model.softcap) == ("pion-nano", 30)
    assert job.evaluate.prompts == ["Once upon", "def f"]


def test_the_value_of_an_override_may_hold_an_equals_sign(job_file):
    job = load_job(job_file(), ["evaluate.prompts=['a=b']"])
    assert job.evaluate.prompts == ["a=b"]


def test_the_last_of_two_overrides_of_a_field_counts(job_file):
    assert load_job(job_file(), ["seed=1", "seed=2"]).seed == 2


def test_the_record_of_a_job_is_the_file_or_the_file_with_overrides_merged_in(job_file):
    path = job_file()
    assert job_text(path) == GOOD
    merged = path.with_name("merged.yaml")
    merged.write_text(job_text(path, ["pretrain.lr=1e-3"]))
    assert load_job(merged) == load_job(path, ["pretrain.lr=1e-3"])
    recorded = parse_job(job_text(path, ["seed=3"]), "the record")
    assert recorded.model_dump() == load_job(path, ["seed=3"]).model_dump()


# ---------------------------------------------------------------- what can't be read


def test_a_missing_file_is_named_with_the_nearest_one_beside_it(job_file, tmp_path):
    job_file(name="demo.yaml")
    message = complaint(tmp_path / "dmeo.yaml")
    assert str(tmp_path / "dmeo.yaml") in message
    assert f"did you mean {tmp_path / 'demo.yaml'}?" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("- a\n- b\n", "a job is a mapping"),
        ("just words\n", "a job is a mapping"),
        ("name: x\nmodel: [1, 2\nseed: 3\n", r"line 3, column \d+: not YAML"),
        ("name: x\n\tmodel: y\n", "line 2, column 1: not YAML"),
        ("name: x\nmodel: *other\n", "line 2, column 8: not YAML"),
        ("a: &a\n  b: *a\n", "contains itself"),
        ("name: !!python/object:os.system x\n", "not YAML"),
        ("name: a\n---\nname: b\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_job_is_refused_with_the_place(job_file, text, expected):
    assert re.search(expected, complaint(job_file(text)))


def test_a_folder_or_bytes_that_are_no_text_are_refused(tmp_path):
    assert "can't read the job file" in complaint(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"name: \xff\xfe")
    assert "can't read the job file" in complaint(tmp_path / "b.yaml")


def test_a_key_given_twice_is_refused_with_both_lines(job_file):
    message = complaint(job_file(GOOD + "  steps: 30\n"))
    assert "line 13: `pretrain.steps` is given twice (first on line 11)" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("pretrain.lr", "is not key=value"),
        ("=3", "is not key=value"),
        ("pretrain..lr=3", "is not key=value"),
        ("pretrain.lr=[1", "not YAML"),
        ("data.sources.3.weight=2", "`data.sources` is a list of 1"),
        ("data.sources.first.weight=2", "`data.sources` is a list of 1"),
        ("name.first=x", "`name` is 'tiny', not a section"),
    ],
)
def test_an_override_that_can_not_be_applied_is_refused(job_file, override, expected):
    message = complaint(job_file(), override)
    assert expected in message
    assert override in message


# ---------------------------------------------------------------- mistakes


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(job_file):
    text = GOOD.replace("pion-nano", "pion-nona").replace("steps: 20", "steps: fast")
    text = text.replace("path: corpus", "pth: corpus") + "  lrr: 3\npublsh: {}\n"
    message = complaint(job_file(text), "checkpoint.kep.last=3")
    places = re.findall(r"^ +(line \d+|command line) +([\w.]+):", message, re.MULTILINE)
    assert places == [
        ("line 2", "model.preset"),
        ("line 8", "data.sources.0.path"),
        ("line 9", "data.sources.0.pth"),
        ("line 11", "pretrain.steps"),
        ("line 13", "pretrain.lrr"),
        ("line 14", "publsh"),
        ("command line", "checkpoint.kep"),
    ]
    assert "has 7 mistakes; nothing was started" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "pretrian.steps=3",
            "pretrian: unknown key (value {'steps': 3}); did you mean `pretrain`?",
        ),
        ("pretrain.stepz=3", "unknown key (value 3); did you mean `pretrain.steps`?"),
        ("data.sources.0.pth=a", "data.sources.0.pth: unknown key (value 'a'); did you mean"),
        ("data.sources.0.revision=a", "`revision` belongs in"),
        ("lr=1e-3", "`lr` belongs in `pretrain.lr` or `sft.lr`"),
        ("zzz=1", "the closest of this section's keys is"),
        ("pretrain.steps=many", "pretrain.steps: 'many' should be a whole number"),
        ("pretrain.steps=1.5", "pretrain.steps: 1.5 should be a whole number"),
        ("pretrain.steps=true", "pretrain.steps: true should be a number"),
        ("pretrain.steps=0", "pretrain.steps: 0 should be greater than 0"),
        ("pretrain.lr=.nan", "pretrain.lr: nan should be"),
        ("pretrain.lr=.inf", "pretrain.lr: inf should be a finite number"),
        ("data.held_out=0.9", "data.held_out: 0.9 should be less than 0.5"),
        ("name=7", "name: 7 should be text"),
        ("name=a/b", "name: 'a/b' should match"),
        ("data.sources.0.path=null", "data.sources.0.path: None should be text"),
        ("data.sources=corpus.txt", "data.sources: 'corpus.txt' should be a list"),
        ("data=corpus.txt", "data: 'corpus.txt' should be a section of `key: value` lines"),
        ("hardware.compile=maybe", "hardware.compile: 'maybe' should be true or false"),
        ("pretrain.schedule=wds", "there is no 'wds'; did you mean wsd?; expected wsd, cosine"),
        ("model=pion-smal", "unknown model preset 'pion-smal'; did you mean 'pion-small'?"),
        ("model=pion-smal", "pion-nano, pion-micro, pion-small, pion-base, pion-large, pion-xl"),
        ("model.d_model=383", "model: d_model 383 is not a multiple of n_heads 6"),
        ("publish={to: out, require: [soon]}", "publish.require: 'soon' is not `result < number`"),
    ],
)
def test_a_mistake_names_its_path_its_value_and_what_is_expected(job_file, override, expected):
    assert expected in complaint(job_file(), override)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_conversations_have_no_field_to_read_a_text_from(job_file, kind):
    where = {"repo": "user/talks"} if kind == "hub" else {"path": "talks"}
    source = json.dumps({"kind": kind, **where, "field": "messages"})
    texts = load_job(job_file(), [f"data.sources=[{source}]"]).data.sources
    assert texts[0].field == "messages"
    assert "sft.sources.0.field: unknown key (value 'messages'); `field` belongs in `data." in (
        complaint(job_file(), f"sft={{steps: 200, sources: [{source}]}}")
    )


def test_an_unknown_kind_of_source_is_answered_with_the_kinds(job_file):
    message = complaint(job_file(GOOD.replace("kind: text", "kind: txet")))
    assert "line 8  data.sources.0.kind: there is no 'txet'; did you mean text?" in message
    assert "python-docs, text, jsonl, parquet, npy, bin, hub, hub-npy" in message
    message = complaint(job_file(GOOD.replace("kind: text", "weight: 1")))
    assert "data.sources.0.kind: missing; the kinds are python-docs, text" in message


def test_a_missing_required_field_is_described(job_file):
    message = complaint(job_file(GOOD.replace("steps: 20", "lr: 3e-4")))
    assert "line 10  pretrain.steps: missing: optimizer steps" in message


def test_fields_that_contradict_each_other_are_all_reported(job_file):
    message = complaint(
        job_file(),
        "pretrain.warmup_steps=20",
        "pretrain.min_lr=1",
    )
    assert "pretrain.warmup_steps: 20 must be below steps 20" in message
    assert "pretrain.min_lr: 1.0 is above lr 0.0003" in message
    message = complaint(
        job_file(), "model.softcap=30", "publish.to=out", "data.seq_len=4096", "data.sources=[]"
    )
    assert "model.softcap: a capped model is not stock Qwen3" in message
    assert "data.seq_len: 4096 exceeds the model's context 2048" in message
    assert "data.sources: empty, but `pretrain` needs text" in message


@pytest.mark.parametrize("section", ["{}", "{file: a.json, hub: user/name}"])
def test_a_tokenizer_comes_from_exactly_one_place(job_file, section):
    message = complaint(job_file(), f"tokenizer={section}")
    assert "tokenizer: give exactly one of train, file, hub" in message


def test_a_job_that_trains_nothing_is_refused(job_file):
    assert "nothing to train" in complaint(job_file(), "pretrain=null")
    message = complaint(
        job_file(), "pretrain=null", "sft={steps: 200, sources: [{kind: python-docs-qa}]}"
    )
    assert "sft.init_from: without `pretrain` it must name a model" in message


# ---------------------------------------------------------------- help


def every_path(section: type, prefix: str = "") -> set[str]:
    from pipeline.job.help import _sections_of

    paths = set()
    for name, field in section.model_fields.items():
        inner = _sections_of(field.annotation)
        here = f"{prefix}{name}"
        if len(inner) != 1:
            paths.add(here)
        step = ".N." if len(inner) > 1 else "."
        for each in inner:
            paths |= {p for p in every_path(each, here + step) if not p.endswith(".N.kind")}
    return paths


def test_help_lists_every_field_with_type_default_and_part():
    lines = {line.split("  ")[0]: line for line in help_job().splitlines()}
    assert every_path(Job) <= lines.keys()
    assert lines["pretrain.lr"] == (
        "pretrain.lr  (number; 0.0003; schedule)  peak learning rate of AdamW"
    )
    assert "(whole number; required; schedule)" in lines["sft.steps"]
    assert "(wsd | cosine | constant; wsd; schedule)" in lines["pretrain.schedule"]
    assert "(true or false; true; identity)" in lines["publish.private"]
    assert "runtime" in lines["hardware.threads"]


def test_every_field_has_a_meaning_and_a_part():
    for line in help_job().splitlines():
        if line and not line.startswith("#"):
            path, details, meaning = re.fullmatch(r"(\S+)  \((.*?)\)  (.+)", line).groups()
            assert details.split("; ")[-1] in ("identity", "schedule", "runtime"), path
            assert len(meaning) > 3, path


def test_help_on_a_terminal_is_a_table_no_wider_than_it():
    table = re.sub(r"\x1b\[[0-9;]*m", "", help_job(100))
    assert max(len(line) for line in table.splitlines()) <= 100
    assert "peak learning rate of AdamW" in table
