"""The command line: light to start, exact in its exit codes, and never a bare traceback."""

import importlib.metadata
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

import pipeline.cli
from pion.errors import Fenced, NotDurable
from pipeline.cli import main
from pipeline.job import STAGES
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.records import SkippedRows
from tests.paths import JOBS, SEEDS
from tests.support.finished_run import make_run, tiny_model, tiny_tokenizer
from tests.support.jobs import tiny_dict
from tests.support.waiting import run_to_end

COMMANDS = ("run", "chat", "generate", "eval", "export", "import-seed", "status", "checkpoints")
COMMANDS += ("report", "stop", "fork", "prove")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pion(capsys):
    """Run a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return run


# ---------------------------------------------------------------- starting


def test_starting_the_command_imports_nothing_heavy():
    code = "import sys, pipeline.cli; print(*sorted(sys.modules))"
    loaded = run_to_end([sys.executable, "-c", code]).stdout
    heavy = {"torch", "ray", "transformers", "pydantic", "numpy", "rich", "huggingface_hub"}
    assert not heavy & set(loaded.split())


def test_the_module_runs_like_the_command_and_exits_with_its_code(here):
    def exit_code(*arguments: str) -> int:
        command = [sys.executable, "-m", "pipeline.cli", *arguments]
        return run_to_end(command).returncode

    assert exit_code("--help") == 0
    assert exit_code("status") == 0
    assert exit_code("status", "nothing") == 2
    assert exit_code() == 2


def test_help_lists_every_command_and_each_has_help_of_its_own(pion):
    code, out, _ = pion("--help")
    assert code == 0
    for command in COMMANDS:
        assert command in out
        assert pion(command, "--help")[0] == 0


def test_help_says_what_every_exit_code_means(pion):
    from pion import errors

    codes = {e.exit_code for e in vars(errors).values() if hasattr(e, "exit_code")}
    listed = pion("--help")[1].partition("exit codes:\n")[2].splitlines()
    assert {int(line.split()[0]) for line in listed} == codes | {0}


def test_version_is_that_of_the_installed_package(pion):
    code, out, err = pion("--version")
    assert (code, err) == (0, "")
    assert out.split()[:2] == ["pion", importlib.metadata.version("pion")]


def test_help_of_redo_names_every_stage(pion):
    words = " ".join(pion("run", "--help")[1].split())
    assert f"all later stages: {', '.join(STAGES[:-1])} or {STAGES[-1]}" in words


@pytest.mark.parametrize("command", ["status", "checkpoints", "stop", "fork", "report"])
def test_help_says_what_a_run_may_be_named_by(pion, command):
    assert "a name in runs/, or STORE/NAME" in " ".join(pion(command, "--help")[1].split())


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_does_is_one_sentence(pion, command):
    description = pion(command, "--help")[1].split("\n\n")[1]
    assert re.search(r"\w[.?]$", description)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rnu"], "there is no command 'rnu'; did you mean run?"),
        (["generate", "--temprature", "1"], "unrecognized arguments: --temprature"),
        (
            ["generate", "--temperature", "-1"],
            "temperature must be a number of at least 0, not '-1'",
        ),
        (["generate", "--top-p", "0"], "top p must be a number above 0 and at most 1, not '0'"),
        (
            ["generate", "--max-tokens", "many"],
            "max tokens must be a whole number of at least 1, not 'many'",
        ),
        (["chat", "--temperature", "nan"], "temperature must be a number of at least 0, not 'nan'"),
        (["checkpoints"], "RUN"),
        (["run"], "name a job file"),
    ],
)
def test_wrong_arguments_exit_with_2_and_say_what_is_wrong(here, pion, arguments, expected):
    code, out, err = pion(*arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert "Traceback" not in err


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(("error", "code"), [(Fenced("taken over"), 3), (NotDurable("full"), 74)])
def test_an_error_for_a_person_is_printed_and_gives_its_exit_code(pion, monkeypatch, error, code):
    def fails(args):
        raise error

    monkeypatch.setattr(pipeline.cli, "_status", fails)
    assert pion("status") == (code, "", f"error: {error}\n")


def test_a_bug_is_said_to_be_one_with_its_traceback_in_a_file(pion, monkeypatch):
    def fails(args):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(pipeline.cli, "_status", fails)
    code, out, err = pion("status")
    assert (code, out) == (1, "")
    assert "this is a bug in Pion: ZeroDivisionError: division by zero" in err
    assert "Traceback" not in err
    log = Path(err.split("The traceback is in ")[1].split(" ")[0])
    assert "Traceback (most recent call last)" in log.read_text()
    log.unlink()

    monkeypatch.setenv("PION_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["status"])


def test_ctrl_c_ends_a_command_with_130(pion, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.cli, "_status", interrupted)
    assert pion("status") == (130, "", "")


def test_a_reader_that_goes_away_is_no_error_message(here):
    make_run(here / "runs")
    command = f"{sys.executable} -m pipeline.cli run --help-job | head -1"
    result = run_to_end(["bash", "-c", command])
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


def test_a_log_that_only_takes_ascii_is_written_nevertheless(here):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "pipeline.cli", "run", "--help-job"]
    result = run_to_end(command, env=environment)
    assert result.returncode == 0
    assert "pretrain.lr" in result.stdout


# ---------------------------------------------------------------- run


def test_help_job_prints_every_field(pion):
    code, out, _ = pion("run", "--help-job")
    assert code == 0
    assert "pretrain.lr  (number; 0.0003; schedule)  peak learning rate of AdamW" in out


def test_a_job_with_mistakes_starts_nothing(here, pion):
    Path("job.yaml").write_text("name: x\nmodle: pion-nano\n")
    code, out, err = pion("run", "job.yaml")
    assert (code, out) == (2, "")
    assert "line 2  modle: unknown key (value 'pion-nano'); did you mean `model`?" in err
    assert not Path("runs").exists()


def test_overrides_may_stand_before_and_after_options(here, pion):
    Path("job.yaml").write_text("name: x\n")
    _, _, err = pion("run", "job.yaml", "nmae=y", "--redo", "sft", "sed=3")
    assert "did you mean `name`?" in err
    assert "did you mean `seed`?" in err


# ---------------------------------------------------------------- reading a store


def test_status_of_a_run_is_read_from_its_store_alone(here, pion):
    make_run(here / "runs")
    code, out, _ = pion("status", "demo")
    assert code == 0
    assert "pretrain  done at step 20" in out
    assert "digest digest-pretrain" in out
    assert "evaluate  not started" in out
    assert "newest checkpoint: sft step 5" in out
    assert "owner: nobody (released)" in out


def test_status_shows_the_stages_that_the_runs_job_has(here, pion):
    run = make_run(here / "runs", saves=[("pretrain", 10)], finished=[])
    assert "sft       not started" in pion("status", "demo")[1]  # nothing says what job it is
    run.write_job("d1", yaml.safe_dump(tiny_dict(sft=None)))
    claim = claim_run(run, Owner.me())
    claim.set_job("d1")
    claim.release()
    _, out, _ = pion("status", "demo")
    assert "pretrain  in progress at step 10" in out
    assert "evaluate  not started" in out
    assert "sft" not in out
    assert "publish" not in out


def test_status_names_the_owner_and_what_it_last_said(here, pion):
    run = make_run(here / "runs", release=False)
    beat = {"epoch": 1, "owner": None, "at": 0.0, "beat": 1}
    beat["status"] = {"stage": "sft", "step": 7, "steps": 60, "loss": 2.5, "tokens_per_second": 9e3}
    run.store.write(run.key("owner/1.json"), json.dumps(beat).encode())
    _, out, _ = pion("status", "demo")
    assert f"owner: pid {os.getpid()} on " in out
    assert "epoch 1, running, heartbeat" in out
    assert "; sft step 7/60, loss 2.5000, 9,000 tokens/s" in out


def test_status_as_json_can_be_read_by_a_program(here, pion):
    make_run(here / "runs", finished=["pretrain"])
    status = json.loads(pion("status", "demo", "--json")[1])
    assert status["stages"]["pretrain"]["state"] == "done"
    assert status["stages"]["sft"] | {"at": 0} == {
        "state": "begun",
        "at": 0,
        "digest": "digest-sft",
        "step": 5,
    }
    assert status["owner"] is None
    (only,) = json.loads(pion("status", "--json")[1])
    assert only["run"] == "demo"


def test_status_without_a_run_lists_all_of_them(here, pion):
    assert "no runs in" in pion("status")[1]
    make_run(here / "runs", "first")
    make_run(here / "runs", "second", saves=[])
    first, second = pion("status")[1].splitlines()
    assert first.startswith("first ")
    assert "done: pretrain, sft" in first
    assert second.startswith("second  done: nothing; newest checkpoint: none")


def test_a_run_that_is_not_there_is_answered_with_those_that_are(here, pion):
    make_run(here / "runs")
    for command in ("status", "checkpoints", "report"):
        code, out, err = pion(command, "dmeo")
        assert (code, out) == (2, "")
        assert "no run 'dmeo'" in err
        assert "demo" in err


def test_checkpoints_as_json_have_the_documented_fields(here, pion):
    make_run(here / "runs")
    rows = json.loads(pion("checkpoints", "demo", "--json")[1])
    assert [(row["stage"], row["step"]) for row in rows] == [
        ("sft", 5),
        ("pretrain", 20),
        ("pretrain", 10),
    ]
    fields = {"stage", "step", "epoch", "at", "bytes", "verified", "model_sha256"}
    assert all(set(row) == fields for row in rows)
    assert all(row["verified"] is True for row in rows)


def test_verifying_finds_a_damaged_checkpoint(here, pion):
    make_run(here / "runs")
    assert pion("checkpoints", "demo", "--verify")[0] == 0
    weights = here / "runs/demo/checkpoints/pretrain/20-1/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, out, _ = pion("checkpoints", "demo", "--verify")
    assert code == 1
    damaged = next(line for line in out.splitlines() if "step      20" in line)
    assert "model.safetensors" in damaged
    code, out, _ = pion("checkpoints", "demo", "--verify", "--json")
    assert [row["verified"] for row in json.loads(out)] == [True, False, True]


def test_the_report_can_be_written_again(here, pion):
    run = make_run(here / "runs", release=False)
    assert "no record of its job" in pion("report", "demo")[2]
    text = (JOBS / "demo.yaml").read_text()
    run.write_job("0123", text)
    claim_run(run, Owner.me()).set_job("0123")
    code, out, _ = pion("report", "demo", "--json")
    assert code == 0
    assert "demo" in Path(json.loads(out)["report"]).read_text()


def test_status_shows_requests_to_stop_money_and_rows_left_out(here, pion):
    run = make_run(here / "runs")
    status = json.loads(pion("status", "demo", "--json")[1])
    assert (status["stop"], status["skipped"], status["notes"]) == (None, {}, [])
    claim = claim_run(run, Owner.me(), price=0.5)
    claim.skip_rows("sft", SkippedRows(16, 20, 5, 2, "digest-sft", "loss is nan", 0.0))
    claim.commit(lambda head: head)
    run.store.write(run.key("requests/0.json"), b"not a request")
    assert pion("stop", "demo")[0] == 0
    _, out, _ = pion("status", "demo")
    assert "asked to stop: pion stop by " in out
    assert "left out: sft rows 16 to 19 (step 5: loss is nan)" in out
    assert "a request was ignored: " in out
    status = json.loads(pion("status", "demo", "--json")[1])
    assert status["stop"]["reason"] == "pion stop"
    assert 0 < status["spent"]["dollars"] < status["spent"]["hours"]


# ---------------------------------------------------------------- stopping and forking


def test_stop_of_a_run_nobody_owns_says_so(here, pion):
    make_run(here / "runs")
    code, out, _ = pion("stop", "demo", "--wait")
    assert code == 0
    assert "Nobody owns demo" in out


def test_a_fork_is_listed_beside_its_source_and_can_be_used(here, pion):
    make_run(here / "runs")
    code, out, _ = pion("fork", "demo", "new", "--at", "20")
    assert code == 0
    assert "copying pretrain step 20" in out
    assert "new continues from pretrain step 20 of demo: pion run JOB name=new [key=value" in out
    (only,) = json.loads(pion("checkpoints", "new", "--json", "--verify")[1])
    assert (only["stage"], only["step"], only["verified"]) == ("pretrain", 20, True)
    code, out, _ = pion("fork", "new", f"{here}/elsewhere/third")
    assert code == 0
    assert f"name=third store=file://{here}/elsewhere" in out
    assert pion("status", f"{here}/elsewhere/third")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demo", "new", "--at", "7"], "Its checkpoints are: sft 5, pretrain 20, pretrain 10."),
        (["demo", "demo"], "demo exists already"),
        (["demo", "a b"], "can't be the name of a run"),
        (["dmeo", "new"], "no run 'dmeo'"),
        (["demo", "new", "--at", "ten"], "--at"),
        (["demo", "gs://bucket/new"], "unknown scheme 'gs'"),
    ],
)
def test_a_fork_that_can_not_be_made_exits_with_2_and_leaves_nothing(
    here, pion, arguments, expected
):
    make_run(here / "runs")
    code, _, err = pion("fork", *arguments)
    assert code == 2
    assert expected in err
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["demo"]


# ---------------------------------------------------------------- using a model


def test_generate_continues_a_prompt_and_repeats_itself_with_a_seed(here, pion):
    make_run(here / "runs")
    command = ["generate", "demo", "--prompt", "Return a", "--max-tokens", "8", "--seed", "1"]
    code, first, _ = pion(*command)
    assert code == 0
    assert first.startswith("Return a")
    assert first.endswith("\n")
    assert pion(*command)[1] == first


def test_generate_reads_standard_input_and_refuses_an_empty_prompt(here, pion, monkeypatch):
    make_run(here / "runs")
    monkeypatch.setattr("sys.stdin", io.StringIO("  \n"))
    code, _, err = pion("generate", "demo")
    assert code == 2
    assert "the prompt is empty" in err


def test_a_prompt_longer_than_the_context_is_refused(here, pion):
    make_run(here / "runs")
    code, _, err = pion("generate", "demo", "--prompt", "header " * 100)
    assert code == 2
    assert "the model's context is 64" in err


def test_eval_measures_text_and_multiple_choice(here, pion):
    make_run(here / "runs")
    Path("text.txt").write_text("Return a new header with string. " * 20)
    question = {"context": "Return a", "choices": [" new", " jumps"], "answer": 0}
    Path("pack.jsonl").write_text(json.dumps(question) + "\n")
    code, out, _ = pion("eval", "demo", "text.txt", "pack.jsonl", "--json")
    assert code == 0
    text, pack = json.loads(out).values()
    assert text["bytes"] == len(Path("text.txt").read_bytes())
    assert text["bits_per_byte"] > 0
    assert (pack["questions"], pack["chance"]) == (1, 0.5)
    _, out, _ = pion("eval", "demo", "text.txt", "pack.jsonl")
    assert out.startswith("text.txt: bits per byte ")
    assert "pack.jsonl: accuracy " in out


@pytest.mark.parametrize(
    ("content", "expected"), [(b"", "has no text"), (b"\xff", "can't read this")]
)
def test_eval_of_a_file_that_is_no_text_is_refused(here, pion, content, expected):
    make_run(here / "runs")
    Path("text.txt").write_bytes(content)
    code, _, err = pion("eval", "demo", "text.txt")
    assert code == 2
    assert expected in err


def test_text_is_scored_token_by_token_like_a_full_forward(here):
    import torch

    from pipeline.commands.eval import text_loss

    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer.vocab_size)
    text = "Return a new header."
    ids = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(text)]])
    expected = model.loss(ids[:, :-1], ids[:, 1:]).item()
    result = text_loss(model, tokenizer, text)
    assert result.loss == pytest.approx(expected, rel=1e-5)
    assert result.tokens == ids.shape[1] - 1
    long = text_loss(model, tokenizer, text * 20, rows_at_once=2)
    assert long.rows == -(-long.tokens // model.config.seq_len)


def test_export_writes_a_folder_that_pion_and_transformers_load(here, pion):
    make_run(here / "runs")
    code, out, _ = pion("export", "demo", "out", "--stage", "pretrain")
    assert code == 0
    assert "demo (pretrain, step 20); loaded again with transformers" in out
    assert pion("generate", "./out", "--prompt", "Return", "--max-tokens", "2")[0] == 0


def test_a_seeds_checkpoint_becomes_a_folder_that_pion_loads(here, pion):
    tiny_tokenizer().save("tokenizer.json")
    seed = str(SEEDS / "pion_nocap_ckpt.pt")
    code, out, _ = pion("import-seed", seed, "imported")
    assert code == 0
    assert "without a tokenizer" in out
    code, _, err = pion("import-seed", seed, "imported")
    assert code == 2
    assert "imported exists and is not empty" in err
    code, _, err = pion("import-seed", seed, "other", "--tokenizer", "tokenizer.json")
    assert (code, Path("other").exists()) in {(0, True), (2, False)}


def test_importing_what_is_no_seeds_checkpoint_is_refused(here, pion):
    Path("x.pt").write_bytes(b"not a checkpoint")
    code, _, err = pion("import-seed", "x.pt", "out")
    assert code == 2
    assert "x.pt" in err
    assert not Path("out").exists()
