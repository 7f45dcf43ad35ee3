"""What commands print and write."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

from tests.paths import JOBS
from tests.pipeline.new.test_command import CHATS
from tests.pipeline.new.test_pairs import LAYOUTS as PAIRS
from tests.support import own_data
from tests.support.chat_templates import CHATML
from tests.support.instruct_model import write_instruct_model
from tests.support.peer_layouts import examples
from tests.support.preference_files import write_jsonl
from tools.golden.place import Place, Texts, place

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


# ---------------------------------------------------------------- plan


def plan() -> Texts:
    """Return what `pion plan` prints of each job that comes with Pion."""
    with place() as here:
        jobs = sorted(JOBS.glob("*.yaml"))
        return {f"{job.stem}.txt": here.pion("plan", str(job), "store=runs") for job in jobs}
