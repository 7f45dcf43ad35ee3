"""What reaches a terminal has no control characters, and what reaches HTML is escaped."""

import ast
import io
import json

import pytest
import yaml

from pipeline.cli import main
from pipeline.console.display import Display
from pipeline.console.messages import (
    Note,
    Phase,
    PrepareProgress,
    Sample,
    StageState,
    Step,
    Summary,
)
from pipeline.state.stores import FileStore
from tests.hostile.attacks import ESCAPE
from tests.hostile.hostile_run import full_head, replace
from tests.hostile.records import RECORDS
from tests.paths import REPOSITORY
from tests.support.jobs import tiny_dict, write_tiny_data
from tests.support.light_run import light_run

ATTACKS = {
    "clear the screen": "\x1b[2J",
    "window title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;cm0gLXJm\x1b\\",
    "C1 control sequence": "\x9b31m",
    "backspaces": "\x08\x08\x08\x7f",
    "carriage return": "\rerror: nothing",
    "reversed text": "\u202e\u2066",
}
ALL = "".join(ATTACKS.values())
CONTROL = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *"\u202a\u202e\u2066"} - {*"\n\t"}


@pytest.fixture
def pion(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments):
        code = main(list(arguments))
        printed = "".join(capsys.readouterr())
        assert not CONTROL & set(printed), repr(printed)
        return code, printed

    return run


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_error_about_an_argument_is_printable(pion, attack):
    for arguments in (
        ("run", f"{attack}.yaml"),
        ("run", "job.yaml", f"x{attack}=1"),
        ("run", f"--{attack}"),
        (f"{attack}",),
        ("generate", f"model{attack}", "--prompt", "a"),
        ("status", f"a{attack}/b"),
        ("import-seed", f"{attack}.pt", "out"),
    ):
        assert pion(*arguments)[0] == 2


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_error_about_a_job_is_printable(pion, attack, tmp_path):
    job = tiny_dict() | {f"key{attack}": 1, "name": f"a{attack}"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    code, printed = pion("run", "job.yaml")
    assert (code, "job.yaml" in printed) == (2, True)


def said_by_others(run, text):
    """Write a HEAD with this text in place of every text that may be any."""
    head, record = json.loads(full_head().to_json()), RECORDS["HEAD"]
    for case in record.cases():
        if case.what == "escape" and isinstance(case.good, str) and record.allows(case):
            head = json.loads(case.on(head))
    head["job"] = run.read().job  # the name of a file
    written = json.dumps(head).replace(json.dumps(ESCAPE), json.dumps(text))
    replace(run, "HEAD.json", written.encode())


@pytest.mark.parametrize("command", ["status", "status demo", "checkpoints demo", "stop demo"])
def test_what_a_store_says_is_printable(pion, tmp_path, command):
    said_by_others(light_run(FileStore(tmp_path / "runs")), f"said{ALL}")
    assert pion(*command.split())[0] == 0


def test_the_fields_of_a_line_of_data_are_printable(pion, tmp_path):
    write_tiny_data(tmp_path)
    (tmp_path / "x.jsonl").write_text(json.dumps({f"a{ALL}": "b"}) + "\n")
    sources = [{"kind": "jsonl", "path": "x.jsonl"}]
    job = tiny_dict(data__sources=sources, sft=None, hardware__workers=0, store="runs")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    code, printed = pion("run", "job.yaml")
    assert (code, "x.jsonl" in printed) == (2, True)


@pytest.mark.parametrize(
    "message",
    [
        Note(ALL),
        Phase(ALL, 1.0),
        Phase("a", 1.0, parts={ALL: 1.0}),
        PrepareProgress(ALL, 1, ALL),
        StageState("sft", "done", ALL),
        Sample("sft", 1, ALL, ALL),
        Step(f"sft{ALL}", 1, 2, 1.0, 1.0, 1.0),
        Summary([[ALL, ALL]]),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_a_run_shows_is_printable_in_a_log_and_on_a_terminal(message):
    log, terminal = io.StringIO(), io.StringIO()
    for file, live in ((log, False), (terminal, True)):
        with Display(file, live=live) as display:
            display.say(message)
            display.say(Note("the panel is drawn with each line"))
    assert log.getvalue()
    assert not CONTROL & set(log.getvalue())
    for attack in ATTACKS.values():
        assert attack not in terminal.getvalue()


MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&$body${title}"


def test_what_a_store_says_is_escaped_in_the_report(pion, tmp_path):
    run = light_run(FileStore(tmp_path / "runs"))

    said_by_others(run, MARKUP + ALL)
    for path in (run.store.folder / run.name / "events").rglob("*.jsonl"):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        for event in events:
            event |= {"device": MARKUP + ALL, "host": MARKUP + ALL}
        path.write_text("".join(json.dumps(event) + "\n" for event in events))
    code, printed = pion("report", "demo")
    assert code == 0, printed
    html = (run.store.folder / run.name / "report.html").read_text()
    assert r"\u003cscript\u003ealert(1)\u003c/script\u003e" in html
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert not CONTROL & set(html)


# Modules that print what no one else wrote, or write bytes that no person reads.
PRINTS_ITSELF = {
    "pipeline/cli.py": "the version, help, and errors through printable()",
    "pipeline/commands/chat.py": "answers, through printable()",
    "pipeline/commands/eval_core.py": "how far it is, through printable()",
    "pipeline/console/display.py": "lines, through printable()",
    "pipeline/console/formats.py": "show() itself",
    "pipeline/console/print_and_ask.py": "tables, whose cells went through printable()",
    "pipeline/job/help_job.py": "docs/jobs.md",
    "pipeline/search/try_command.py": "how far it is, through printable()",
    "pipeline/models/find.py": "which run is left out, through printable()",
    "pipeline/rent/on_machine/boot_check.py": "starts without packages, and prints its own words",
    "pipeline/rent/on_machine/gpu_check.py": "prints its own words",
    "pipeline/run/signals.py": "prints its own words",
}


def test_every_module_prints_json_or_through_show():
    printing = set()
    for path in (REPOSITORY / "pipeline").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "print(" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                argument = ast.unparse(node.args[0]) if node.args else ""
                if not argument.startswith(("json.dumps(", "finite_json(")):
                    printing.add(str(path.relative_to(REPOSITORY)))
    assert printing == PRINTS_ITSELF.keys()
