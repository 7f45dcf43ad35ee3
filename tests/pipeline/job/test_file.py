"""A job file is read as people mean it."""

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
    near, path = job_file(name="demo.yaml"), tmp_path / "dmeo.yaml"
    (tmp_path / ".dmeo.yaml").touch()  # such as .pre-commit-config.yaml, which is no job
    assert f"{path}; did you mean {near}?" in complaint(path)


def test_a_folder_is_refused(tmp_path):
    assert "can't read the job file" in complaint(tmp_path)
