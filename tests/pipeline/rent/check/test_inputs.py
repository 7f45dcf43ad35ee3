"""A model to start from in a folder travels with the job, or is refused before anything is rented.

The other files of a job are tried in test_rental.py.
"""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pion.errors import BadInput
from pipeline.base.job_with_base import read_job
from pipeline.base.keep import keep_as_base
from pipeline.console.formats import size
from pipeline.rent.check.command import PRICED, run_checks
from pipeline.rent.check.inputs import check_base, check_files
from pipeline.rent.check.job import check_evaluate
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.pipeline.base.conftest import export_base
from tests.pipeline.rent.conftest import YAML
from tests.support.hub_server import READ_TOKEN, WRITE_TOKEN, hub_server
from tests.support.jobs import write_tiny_data

SFT = {"steps": 1, "warmup_steps": 0, "sources": [{"kind": "jsonl", "path": "talks.jsonl"}]}


@pytest.fixture
def checkout(tmp_path):
    """A folder with conversations and a model, which a rental copies."""
    folder = tmp_path / "checkout"
    (folder / "jobs").mkdir(parents=True)
    write_tiny_data(folder / "jobs")
    export_base(folder / "base")
    return folder


@pytest.fixture
def rental(sky_home, checkout):
    """A rental to which the checkout is copied."""
    return read_sky_yaml(sky_home.yaml(text=f"workdir: {checkout}\n" + YAML))


def job_from(checkout, source, **changes):
    """Return the job in the folder `jobs` of the checkout that starts from `source`."""
    job = {"name": "mine", "model": {"from": source}, "sft": SFT, "store": f"{checkout}-runs"}
    path = checkout / "jobs" / "job.yaml"
    path.write_text(yaml.safe_dump(job | changes))
    return read_job(path)


def test_a_model_in_the_workdir_travels_with_the_job(checkout, rental):
    job = job_from(checkout, "../base")
    (found,) = check_base(job, rental)
    assert found.ok
    (checkout / ".skyignore").write_text("/runs\n*.pt\n")
    sizes = {p: p.stat().st_size for p in checkout.rglob("*") if p.is_file()}
    base = sum(bytes for path, bytes in sizes.items() if path.is_relative_to(checkout / "base"))
    (checkout / "runs/demo").mkdir(parents=True)
    for left_out in ("runs/demo/HEAD.json", "base/seed.pt"):
        (checkout / left_out).write_bytes(bytes(10_000))
    (row,) = check_files(job, rental, str(job.folder / "job.yaml"))
    assert row.ok
    assert row.words == (
        f"{size(sum(sizes.values()))} of {checkout} is copied to the machine. The largest part is "
        f"base ({size(base)}). What .skyignore names is left out, or without that file what "
        ".gitignore names"
    )


OUTSIDE = (
    "model.from: {elsewhere} is outside {checkout}, so it is not copied to the machine. Copy it "
    "into that folder, and name it by its path relative to the job file"
)
LEFT_OUT = "model.from: .skyignore or .gitignore excludes "


@pytest.mark.parametrize(
    ("named", "left_out", "says"),
    [
        ("{elsewhere}", "", OUTSIDE),
        ("../../elsewhere", "", OUTSIDE),
        ("../linked", "", "{elsewhere} is outside"),
        ("../cached", "", "{checkout}/cached/model.safetensors is outside"),
        ("{checkout}/base", "", "Name it by its path relative to the job file: ../base"),
        ("../base", "/base", LEFT_OUT),
        ("../base", "*.safetensors", LEFT_OUT),
    ],
)
def test_a_model_that_the_machine_would_not_find(checkout, rental, named, left_out, says):
    elsewhere = export_base(checkout.parent / "elsewhere")
    (checkout / "linked").symlink_to(elsewhere)
    weights = shutil.copytree(elsewhere, checkout / "cached") / "model.safetensors"
    weights.replace(elsewhere / "blob")  # as in the cache of the Hub
    weights.symlink_to(elsewhere / "blob")
    (checkout / ".skyignore").write_text(f"{left_out}\n")
    places = {"elsewhere": elsewhere, "checkout": checkout}
    job = job_from(checkout, named.format(**places))
    with pytest.raises(BadInput) as refused:
        list(check_files(job, rental, str(job.folder / "job.yaml")))
    assert says.format(**places) in str(refused.value)
    if named == "../../elsewhere":  # several checks meet it, and one row says it
        rows = run_checks(job, rental, path=str(job.folder / "job.yaml"))
        assert [row.words for row in rows if not row.ok and "model.from" in row.words] == [
            str(refused.value)
        ]


def test_once_the_run_has_its_model_the_folder_may_be_anywhere(checkout, rental):
    elsewhere = export_base(checkout.parent / "elsewhere")
    job = job_from(checkout, str(elsewhere))
    with pytest.raises(BadInput, match="is outside"):
        list(check_files(job, rental, None))
    run = RunState(open_store(job.store), job.name)
    keep_as_base(run, job.base, job.folder, lambda message: None, lambda work: work())
    (row,) = check_files(job, rental, None)
    assert row.ok


def test_conversations_named_by_their_place_on_this_machine_would_not_be_found(checkout, rental):
    talks = checkout / "jobs" / "talks.jsonl"
    source = {"kind": "jsonl", "path": str(talks)}
    job = job_from(checkout, "../base", sft=SFT | {"sources": [source]})
    with pytest.raises(BadInput, match=r"relative to the job file: talks\.jsonl"):
        list(check_files(job, rental, None))


def test_nobody_is_asked_for_prices_of_conversations_that_can_not_be_used(checkout, rental):
    talks = checkout / "jobs" / "talks.jsonl"
    talks.write_text(talks.read_text().splitlines()[0])
    job = job_from(checkout, "../base", sft={"epochs": 1, "sources": SFT["sources"]})
    rows = {row.name: row for row in run_checks(job, rental)}
    assert rows["conversations"].ok is False
    assert "files" in rows
    assert not [name for name in rows if name in PRICED or "RunPod" in name]


# ---------------------------------------------------------------- what the machine can read

ON_DOCS = {"steps": 1, "warmup_steps": 0, "sources": [{"kind": "python-docs-qa"}]}


def on(**secrets):
    """A rental to which these secrets are passed on."""
    return SimpleNamespace(secrets=secrets)


def job_in(folder, source, **more):
    content = {"name": "mine", "model": {"from": source}, "sft": ON_DOCS, **more}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(content | {"store": str(folder / "runs")}))
    return read_job(path)


@pytest.fixture
def gated(tmp_path, monkeypatch):
    """A Hub with the gated model someone/gated, which this machine can read."""
    folder = export_base(tmp_path / "base")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with hub_server() as hub:
        hub.add_repo("someone/gated", "model", files, gated=True)
        hub.granted = {READ_TOKEN}
        hub.use(monkeypatch, tmp_path / "hf", token=READ_TOKEN)
        yield hub


def test_a_gated_model_is_asked_for_with_the_token_that_the_rental_gets(gated, tmp_path):
    job = job_in(tmp_path, "someone/gated")
    (row,) = check_base(job, on(HF_TOKEN=READ_TOKEN), {})
    assert "can be read with the token that the rental gets" in row.words
    with pytest.raises(BadInput, match="the rental would have no Hub token: accept its terms"):
        check_base(job, on(), {})
    with pytest.raises(BadInput, match="has no access: accept its terms on https://hugg"):
        check_base(job, on(HF_TOKEN=None), {"HF_TOKEN": WRITE_TOKEN})


def test_once_the_run_has_its_model_no_token_is_needed(gated, tmp_path):
    job = job_in(tmp_path, "someone/gated")
    run = RunState(open_store(job.store), job.name)
    keep_as_base(run, job.base, tmp_path, lambda message: None, lambda work: work())
    gated.requests.clear()
    (row,) = check_base(read_job(tmp_path / "job.yaml"), on(), {})
    assert "in the run's store" in row.words
    assert not gated.requests


def test_a_model_of_this_machine_is_refused_for_a_rental(tmp_path):
    from tests.support.finished_run import make_run

    make_run(tmp_path / "elsewhere")
    job = job_in(tmp_path, f"file://{tmp_path}/elsewhere/demo")
    assert check_base(job, None)[0].ok
    with pytest.raises(BadInput, match="is on this machine only"):
        check_base(job, on())


# ---------------------------------------------------------------- the text to compare on


def job_with(folder, text):
    export_base(folder / "base")
    return job_in(folder, "base", evaluate={"text": text})


def test_a_text_outside_the_workdir_is_not_copied(tmp_path):
    workdir = tmp_path / "work"
    workdir.mkdir()
    (tmp_path / "notes.txt").write_text("a text")
    there = SimpleNamespace(path=Path("rental.yaml"), config={"workdir": str(workdir)})
    with pytest.raises(BadInput, match=r"evaluate\.text: .*notes\.txt is outside .*work"):
        list(check_files(job_with(workdir, "../notes.txt"), there, None))
    (workdir / "notes.txt").write_text("a text")
    (row,) = check_files(job_with(workdir, "notes.txt"), there, None)
    assert row.ok


def test_a_text_that_can_not_be_read_is_found_before_anything_is_rented(tmp_path):
    job = job_with(tmp_path, "notes.txt")
    with pytest.raises(BadInput, match=r"evaluate\.text: no such file or folder"):
        list(check_evaluate(job))
    (tmp_path / "notes.txt").write_text("a text")
    (row,) = check_evaluate(job)
    assert row.ok
    assert "notes.txt can be read" in row.words
