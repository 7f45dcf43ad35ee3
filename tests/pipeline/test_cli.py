"""The command line: light to start, exact in its exit codes, and never a bare traceback."""

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline.cli  # noqa: F401
import pipeline.commands.cli
from pion import DISTRIBUTION
from pion.errors import Fenced, NotDurable
from pipeline.cli import GROUPS, _parser_of, main
from pipeline.job import STAGES
from pipeline.job.stages import TRAINING
from pipeline.state import owner
from tests.paths import REPOSITORY
from tests.support.finished_run import make_run
from tests.support.waiting import run_to_end

COMMANDS = ("run", "chat", "generate", "eval", "export", "import-seed", "status", "checkpoints")
COMMANDS += ("report", "stop", "deadline", "fork", "prove", "bench", "rm")
OF_A_RUN = ("status", "checkpoints", "stop", "deadline", "fork", "report", "rm")


# ---------------------------------------------------------------- starting


def test_starting_the_command_imports_nothing_heavy():
    code = "import sys, pipeline.cli; print(*sorted(sys.modules))"
    loaded = run_to_end([sys.executable, "-c", code]).stdout
    heavy = {"torch", "ray", "transformers", "pydantic", "numpy", "rich", "huggingface_hub"}
    assert not heavy & set(loaded.split())
    assert pipeline.commands.cli.TRAINING == TRAINING


def test_ctrl_c_while_the_command_is_imported_leaves_no_traceback():
    code = """if True:
    import _signal, os, sys
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)  # ignored if the tests run with `&`
    class Interrupting:
        def find_spec(self, name, *_):
            if name not in ("pipeline", "pipeline.entry"):
                os.kill(os.getpid(), _signal.SIGINT)
    sys.meta_path.insert(0, Interrupting())
    from pipeline.entry import run_and_exit
    run_and_exit()
    """
    ended = run_to_end([sys.executable, "-c", code])
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("command", ["--help", "status nobody"])
def test_a_closed_standard_output_is_no_bug(command, here):
    ended = run_to_end(["sh", "-c", f"{sys.executable} -m pipeline.cli {command} >&- <&-"])
    assert ended.returncode == (2 if command == "status nobody" else 0)
    assert "bug" not in ended.stderr


@pytest.mark.parametrize(
    "command",
    ["status ~nobody/x", "export ~nobody/x y", "data ~nobody/x", "import-seed ~nobody/x.pt y"],
)
def test_the_home_of_nobody_is_refused_by_name(command, here, pion):
    code, _, err = pion(*command.replace("~nobody", "~no-such-user").split())
    assert code == 2
    assert "home folder for ~no-such-user" in err


def test_the_module_runs_like_the_command_and_exits_with_its_code(here):
    def exit_code(*arguments):
        command = [sys.executable, "-m", "pipeline.cli", *arguments]
        return run_to_end(command).returncode

    assert exit_code("--help") == 0
    assert exit_code("status", "nothing") == 2


def test_a_person_who_knows_no_command_gets_help_in_groups(pion):
    _, out, _ = pion("--help")
    assert pion() == (0, out, "")
    assert pion("help", "run") == pion("run", "--help")
    named = {name for names in GROUPS.values() for name in names.split()}
    assert named == {*_parser_of(named)[0].commands}
    listed = re.findall(r"(?m)^  ([a-z-]+)  ", out.partition("train:")[2])
    assert set(listed) == named


def test_a_shell_completes_commands_and_their_options(pion):
    ask = "COMP_WORDS=({}); COMP_CWORD={}; _pion; echo ${{COMPREPLY[@]}}".format
    script = "\n".join([pion("completion", "bash")[1], ask("pion che", 1), ask("pion run --re", 2)])
    found = subprocess.check_output(["bash", "-c", script], timeout=300, encoding="utf-8")
    assert found.split("\n") == ["checkpoints check", "--redo", ""]
    fish = pion("completion", "fish")[1]
    assert "complete -c pion -n '__fish_seen_subcommand_from run' -l redo\n" in fish
    assert "bashcompinit" in pion("completion", "zsh")[1]


def test_help_lists_every_command_and_each_says_in_a_sentence_what_it_does(pion):
    code, out, _ = pion("--help")
    assert code == 0
    for command in COMMANDS:
        assert command in out
        code, helped, _ = pion(command, "--help")
        assert code == 0
        assert re.search(r"\w[.?]$", helped.split("\n\n")[1]), command
        if command in OF_A_RUN:
            assert "a name in runs/, or STORE/NAME" in " ".join(helped.split()), command


def test_help_says_what_every_exit_code_means(pion):
    from pion import errors

    codes = {e.exit_code for e in vars(errors).values() if hasattr(e, "exit_code")}
    listed = re.findall(r"(?m)^  (\d+) ", pion("--help")[1].partition("exit codes:\n")[2])
    assert {int(code) for code in listed} == codes | {0}


def test_help_of_redo_names_every_stage(pion):
    words = " ".join(pion("run", "--help")[1].split())
    assert f"all later stages: {', '.join(STAGES[:-1])} or {STAGES[-1]}" in words


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["replay", "job.yaml"], "`pion replay` is gone: in a checkout of Pion, `python -m"),
        (["ladder", "job.yaml"], "`pion ladder` is gone: in two of three ladders"),
        (["watch", "--all"], "`pion watch --all` is gone: one `pion watch RUN` looks after"),
        (["watch", "one", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["watch", "one", "two"], "`pion watch RUN RUN` is gone: one `pion watch RUN` looks"),
        (["rnu"], "there is no command 'rnu'; did you mean run?"),
        (
            ["generate", "--temprature", "1"],
            "unrecognized arguments: --temprature\n(see pion generate --help)",
        ),
        (
            ["generate", "--temperature", "-1"],
            "temperature must be 0 (the likeliest token) or from 1e-30 to 1,000,000, not '-1'",
        ),
        (["generate", "--top-p", "0"], "top p must be from 1e-30 to 1, not '0'"),
        (
            ["generate", "--max-tokens", "many"],
            "max tokens must be a whole number, from 1 to 2,147,483,647, not 'many'",
        ),
        (
            ["chat", "--temperature", "nan"],
            "temperature must be 0 (the likeliest token) or from 1e-30",
        ),
        (["checkpoints"], "RUN"),
        (["eval", "demo", "--instructions=24"], "`pion eval --instructions` is gone: name"),
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

    monkeypatch.setattr(pipeline.commands.cli, "_status", fails)
    assert pion("status") == (code, "", f"error: {error}\n")


def test_a_bug_is_said_to_be_one_with_its_traceback_in_a_file(pion, monkeypatch):
    def fails(args):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(pipeline.commands.cli, "_status", fails)
    code, out, err = pion("status")
    assert (code, out) == (1, "")
    assert "this is a bug in Pion: ZeroDivisionError: division by zero" in err
    assert "Traceback" not in err
    log = Path(err.partition("The traceback is in ")[2].partition(" (PION_DEBUG")[0])
    assert "Traceback (most recent call last)" in log.read_text()
    log.unlink()

    monkeypatch.setenv("PION_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["status"])


@pytest.mark.parametrize("swallowed", [False, True])
def test_ctrl_c_ends_a_command_with_130(pion, monkeypatch, swallowed):
    def interrupted(args):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:  # as Python does while it makes a class
            if swallowed:
                raise RuntimeError("Error calling __set_name__") from error
            raise

    monkeypatch.setattr(pipeline.commands.cli, "_status", interrupted)
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


def test_threads_that_wait_for_each_other_leave_the_core_to_other_programs(pion, monkeypatch):
    # Both are put back after the test.
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    del os.environ["GOMP_SPINCOUNT"]
    pion("run", "no-such-job.yaml")
    assert "GOMP_SPINCOUNT" not in os.environ
    del os.environ["OMP_WAIT_POLICY"]
    pion("run", "no-such-job.yaml")
    assert os.environ["GOMP_SPINCOUNT"] == "2000"
    os.environ["GOMP_SPINCOUNT"] = "7"
    pion("run", "no-such-job.yaml")
    assert os.environ["GOMP_SPINCOUNT"] == "7"


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


def test_a_run_that_is_not_there_is_answered_with_those_that_are(here, pion):
    make_run(here / "runs")
    for command in ("status", "checkpoints", "report"):
        code, out, err = pion(command, "dmeo")
        assert (code, out) == (2, "")
        assert "no run 'dmeo'" in err
        assert "demo" in err


@pytest.mark.parametrize(
    ("found", "launched_with", "words"),
    [
        ((None, None), {}, ""),  # a wheel
        ((None, None), {"PION_COMMIT": "0123456789ab"}, " (0123456)"),  # a rented machine
        (
            (None, None),
            {"PION_COMMIT": "0123456789ab", "PION_DIRTY": "77"},
            " (0123456, changed since)",
        ),
        (("abcdef0123", None), {}, " (abcdef0)"),
        (("abcdef0123", "77"), {"PION_COMMIT": "0123456789ab"}, " (abcdef0, changed since)"),
    ],
)
def test_the_version_names_the_commit_and_whether_the_code_was_changed(
    pion, monkeypatch, found, launched_with, words
):
    def checkout(root):
        assert root == REPOSITORY
        return found

    monkeypatch.setattr(owner, "checkout", checkout)
    monkeypatch.setattr(owner, "code_version", owner.code_version.__wrapped__)
    for name in ("PION_COMMIT", "PION_DIRTY"):
        monkeypatch.setenv(name, launched_with.get(name, ""))
    assert pion("--version") == (0, f"pion {importlib.metadata.version(DISTRIBUTION)}{words}\n", "")
