"""A job file is read as people mean it."""

import re

import pytest

from pipeline.job import Job
from pipeline.job.file import job_text, load_job, parse_job
from tests.pipeline.job.conftest import GOOD, complaint

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
            "name=first",
            "name=other",
            "data.sources.0.weight=2",
            "checkpoint.keep.last=5",
            "model.softcap=30",
            "evaluate.prompts=[Once upon, 'a=b']",
            "pretrain.pause_at=null",
        ],
    )
    assert (job.name, job.data.sources[0].weight, job.checkpoint.keep.last) == ("other", 2, 5)
    assert (job.model.preset, job.model.softcap) == ("pion-nano", 30)
    assert job.evaluate.prompts == ["Once upon", "a=b"]


def test_the_record_of_a_job_is_the_file_or_the_file_with_overrides_merged_in(job_file):
    path = job_file()
    assert job_text(path) == GOOD
    merged = path.with_name("merged.yaml")
    merged.write_text(job_text(path, ["pretrain.lr=1e-3"]))
    assert load_job(merged) == load_job(path, ["pretrain.lr=1e-3"])
    recorded = parse_job(job_text(path, ["seed=3"]), "the record")
    assert recorded.model_dump() == load_job(path, ["seed=3"]).model_dump()


# ---------------------------------------------------------------- what can't be read


def test_a_missing_file_is_named_with_the_nearest_one_next_to_it(job_file, tmp_path):
    job_file(name="demo.yaml")
    (tmp_path / ".dmeo.yaml").touch()  # such as .pre-commit-config.yaml, which is no job
    path = tmp_path / "dmeo.yaml"
    assert f"{path}; did you mean {tmp_path / 'demo.yaml'}?" in complaint(path)


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
