"""What commands print and write."""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.paths import JOBS, RELEASE_0_1_0
from tests.pipeline.new.test_command import CHATS
from tests.pipeline.new.test_proposal import LAYOUTS as PAIRS
from tests.pipeline.search.fake_runs import FakeRuns
from tests.pipeline.search.fake_runs import write_job as write_searched_job
from tests.pipeline.search.test_search import best_at_2e3, search
from tests.support import own_data
from tests.support.chat_templates import CHATML
from tests.support.core_bundle import pinned, write_bundle
from tests.support.instruct_model import write_instruct_model
from tests.support.peer_layouts import examples
from tests.support.preference_files import write_jsonl
from tools.golden.place import Place, Texts, place, processor

# ---------------------------------------------------------------- new


def new() -> Texts:
    """Return what `pion new` prints of each layout that people have, and the job that it writes."""
    found: Texts = {}
    with place() as here:
        own = "--from", str(write_instruct_model(here.home.folder / "base", "smollm2", CHATML))
        nothing = "--from", "none"
        for layout, write in (own_data.GOOD | own_data.BROKEN).items():
            data = write(here.folder)
            columns = ["--text-column", "body"] if layout == "CSV" else []
            found[layout] = _written(here, data, *(own if layout in CHATS else nothing), *columns)
        found |= _asked(here, own)
        for layout, (record_of, _) in PAIRS.items():
            data = write_jsonl(here.folder / "prefs.jsonl", map(record_of, range(200)))
            found[f"pairs, {layout}"] = _written(here, data, *own)
        found["layouts of peers"] = _peers(here, own)
    return {f"{name.replace(' ', '-')}.txt": text for name, text in found.items()}


def _written(here: Place, data: Path, *options: str) -> str:
    """Return what `pion new` prints, and the files that it writes. They are removed."""
    before = set(here.folder.rglob("*"))
    text = here.pion("new", data.name, *options)
    for path in sorted(set(here.folder.rglob("*")) - before):
        content = path.read_bytes()
        is_job = path.suffix == ".yaml"
        shown = content.decode() if is_job else f"sha256 {hashlib.sha256(content).hexdigest()}\n"
        text += f"--- {path.relative_to(here.folder)}\n{here.neutral(shown)}"
        path.unlink()
    return text


def _asked(here: Place, own: tuple[str, ...]) -> Texts:
    """Return what is asked or refused, and how options answer it."""
    csv, agents = here.folder / "news.csv", own_data.customers(here.folder)
    (here.folder / "empty").mkdir()
    texts, few = here.folder / "articles.jsonl", own_data.sharegpt(here.folder, 1)
    asked = [
        (csv,),
        (agents, *own),
        (agents, "--roles", "customer=user,agent=assistant", *own),
        (here.folder / "cut.jsonl.gz", "--from", "none", "--skip-unreadable"),
        (few, *own),
        (here.folder / "empty",),
        (here.folder / "missing.jsonl",),
        (texts, "--dollars", "0"),
        (texts, "--dollars", "0.1"),
        (texts, "--out", "no/such.yaml"),
        (texts, "--dry-run"),
        (texts, "--text-column", "body"),
    ]
    return {"asked and refused": "\n".join(itertools.starmap(lambda *a: _written(here, *a), asked))}


def _peers(here: Place, own: tuple[str, ...]) -> str:
    """Return what `pion new` says of each layout that peers document."""
    rows = []
    for layout, found in itertools.groupby(examples(), lambda one: one.name.partition(":")[0]):
        every = list(found)
        usable = [one for one in every if "refused" not in one.means]
        records = [one.value for one in usable or every]
        data = write_jsonl(here.folder / "data.jsonl", records * (60 // len(records)))
        rows.append(f"# {layout}\n{_written(here, data, '--dry-run', *own)}")
    return "\n".join(rows)


# ---------------------------------------------------------------- plan, check

# What Python's own documentation has depends on Python.
PYTHON = f"@python-{platform.python_version()}"
CHECKED = ("demo", "demo-prefer", "demo-tachyon", "pion-small", "tachyon-small", "smollm2-360m-sft")
SMALL = "jobs/pion-small.yaml"


def plan() -> Texts:
    """Return what `pion plan` prints of each job that comes with Pion, and of other requests."""
    with place() as here:
        jobs = sorted(path.stem for path in JOBS.glob("*.yaml"))
        found = {f"{job}.txt": here.pion("plan", f"jobs/{job}.yaml", "store=runs") for job in jobs}
        others = [
            *((SMALL, "--on", f"sky/{name}.yaml") for name in ("runpod-spot", "runpod-deadline")),
            (SMALL, "--gpu", "H100", "--gpu", "A40", "hardware.workers=4"),
            (SMALL, "prices={A40: {spot: 0.1, on_demand: 0.9}}", "sft=null"),
            ("jobs/tachyon-large.yaml", "--gpu", "A40", "hardware.workers=1"),
            ("--dollars", "20"),
            (SMALL, "--dollars", "5", "--hours", "9"),
        ]
        found["others.txt"] = "\n".join(here.pion("plan", *other) for other in others)
        return found


def check() -> Texts:
    """Return what `pion check` prints of some jobs, and of rentals."""
    with place() as here:
        jobs = {job: here.pion("check", f"jobs/{job}.yaml", "store=runs") for job in CHECKED}
        found = {f"{job}{PYTHON if 'demo' in job else ''}.txt": text for job, text in jobs.items()}
        others = [
            *((SMALL, "--on", f"sky/{name}.yaml") for name in ("runpod-spot", "runpod-deadline")),
            (SMALL, "model.d_modle=9"),
            (SMALL, "data.sources=[{kind: text, path: nowhere}]"),
        ]
        found["others.txt"] = "\n".join(here.pion("check", *job, "store=runs") for job in others)
        return found


# ---------------------------------------------------------------- the runs of 0.1.0

LOOKS = "status", "checkpoints", "deadline", "report"
RUNS = "done", "half", "rented"


def _bring(here: Place) -> None:
    """Copy the runs of 0.1.0 and their jobs."""
    shutil.copytree(RELEASE_0_1_0 / "inputs", here.folder, dirs_exist_ok=True)
    shutil.copytree(RELEASE_0_1_0 / "store", here.folder / "runs")


def status() -> Texts:
    """Return what commands print of the runs of 0.1.0, and the help of each command."""
    with place() as here:
        _bring(here)
        looks = [(look, f"runs/{name}") for name in RUNS for look in LOOKS]
        looks += [("status",), ("status", "--compare", "runs/done", "runs/half"), ("data", "runs")]
        looks += [("checkpoints", "runs/done", "--verify"), ("status", "runs/nobody")]
        run = "run", "done.yaml", "store=runs"
        looks += [run, (*run, "sft.lr=2e-3")]
        runs = "\n".join(here.pion(*look) for look in looks)
        resumed = here.pion("run", "half.yaml", "store=runs")
        main_help = here.pion("--help")
        commands = re.findall(r"^    (\w[\w-]+) ", main_help, re.MULTILINE)
        helps = [main_help, *(here.pion(command, "--help") for command in commands)]
        return {
            "runs.txt": runs,
            "help.txt": "\n".join(helps),
            f"resumed{processor()}.txt": _unmeasured(resumed),
        }


# What a run prints of its speed, its memory and its saves, and of the machine.
MEASURED = (
    (r".*other programs use this machine.*\n", ""),
    (r".*changed since the last start of this run.*\n", ""),
    (r"(grad norm \S+)  .*", r"\1"),
    (r".* (saved \(training|of another process).*\n", ""),
    (r"(hop: .* → ).*", r"\1<machine>"),
    (r"\b\d[\d.]* m?s\b", "<seconds>"),
    (r"^time .*", "time <seconds>"),
    (r"\bpid \d+ ", "pid <id> "),
)


def _unmeasured(text: str) -> str:
    for pattern, words in MEASURED:
        text = re.sub(pattern, words, text, flags=re.MULTILINE)
    return text


def report() -> Texts:
    """Return the data inside each report of the runs of 0.1.0, and the card of a published one."""
    found: Texts = {}
    with place() as here:
        _bring(here)
        for name in RUNS:
            here.pion("report", f"runs/{name}")
            html = (here.folder / "runs" / name / "report.html").read_text("utf-8")
            _, _, frozen = html.partition('id="frozen">')
            data = json.loads(frozen.partition("</script>")[0])
            data["frozen_at"] = "<now>"
            text = json.dumps(data, indent=1, ensure_ascii=False)
            found[f"{name}.json"] = here.neutral(f"{text}\n")
            found[f"{name}.html"] = here.neutral("".join(re.findall("<dl.*</dl>", html)) + "\n")
        again = here.pion("run", "done.yaml", "store=runs", "--redo", "publish")
        found["publish.txt"] = _unmeasured(again)
        card = here.neutral((here.folder / "published/README.md").read_text("utf-8"))
        found["card.txt"] = re.sub("(?<=pion_run: )[0-9a-f]+", "<id>", card)
    return found


# ---------------------------------------------------------------- keys of --json


def json_keys() -> Texts:
    """Return the paths of the keys of what each command with --json prints."""
    with place() as here:
        _bring(here)
        pinned(here.patch, write_bundle(here.folder / "bundle"))
        own_data.sharegpt(here.folder, 9)
        (here.folder / "text.txt").write_text(own_data.words(300, 1))
        done, half = "runs/done", "runs/half"
        asked = [
            ("status", done),
            ("status", "runs/rented"),
            ("status",),
            ("status", "--compare", done, half),
            ("checkpoints", done, "--verify"),
            ("report", done),
            ("data", "runs"),
            ("data", "runs", "--prune", "--yes"),
            ("eval", done, "text.txt"),
            ("eval", done, "--core", "bundle", "--core-cropped"),
            ("check", SMALL),
            ("plan", SMALL, "--gpu", "A40"),
            ("plan", "jobs/smollm2-360m-sft.yaml", "--gpu", "A40"),
            ("plan", "--dollars", "20"),
        ]
        found = {here.neutral(" ".join(line)): here.pion(*line, "--json") for line in asked}
        found["try"] = here.printed(_try)
        return {"keys.txt": "\n".join(f"# {name}\n{_keys(text)}" for name, text in found.items())}


def _try() -> int:
    job = write_searched_job(Path(), pretrain__steps=40, pretrain__warmup_steps=1)
    return search(job, FakeRuns(loss=best_at_2e3), varied=["pretrain.lr=1e-3,2e-3"], as_json=True)


def _keys(printed: str) -> str:
    """Return each path of keys of the JSON in a text, once; what is not JSON as it is."""
    begin = re.search(r"^[\[{]", printed, re.MULTILINE)
    if begin is None:
        return printed
    value, _ = json.JSONDecoder().raw_decode(printed[begin.start() :])
    return "\n".join(sorted(set(_paths(value)))) + "\n"


def _paths(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, inside in value.items():
            yield from _paths(inside, f"{path}.{key}")
    elif isinstance(value, list) and value:
        for inside in value:
            yield from _paths(inside, f"{path}[]")
    else:
        yield f"{path} {type(value).__name__}"
