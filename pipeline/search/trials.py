"""The runs of a search: every combination of the values of `--vary`, with every seed.

Settings are compared at the same steps, on the same rows, with the same seeds. So a setting that
changes the rows, or how many of them a step has, can't be compared. Settings that differ only in
later phases share the steps before these phases: the trunk.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pion.errors import BadInput
from pipeline.base.job_with_base import read_job
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.job.job import without_questions
from pipeline.search.halving import Round, plan_rounds

# The bounds of a search.
MOST_SETTINGS, MOST_SEEDS = 64, 32
_OF_PHASE = re.compile(r"pretrain\.phases\.(\d+)\.")
# Characters of a run's name that say what it varies; a hash says the rest.
LONGEST_LABEL = 40
# Held-out rows of a model to start from, which every run measures before it trains.
FEW_ROWS = 32
_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a search compares, and how.

    Attributes:
        path, overrides: make the job.
        vary: texts such as pretrain.lr=1e-3,2e-3.
        seeds: with how many seeds each setting trains.
        trunk: a run of the job's store that all seeds continue. Then the seeds are those of the
            order in which the first phase that differs reads its rows.
        on: the source whose loss decides; None: the mean of all decides.
        hours, dollars: the cap over all runs; None: that of the store, if there is one.
    """

    path: str
    vary: Sequence[str]
    overrides: Sequence[str] = ()
    seeds: int = 3
    trunk: str | None = None
    on: str | None = None
    hours: float | None = None
    dollars: float | None = None

    def job(self, *more: str) -> Job:
        """Return the job with `more` overrides. Raises BadInput."""
        return read_job(self.path, [*self.overrides, *more])


# By the name of a setting, as it was given: its overrides. `pretrain.lr=2e-3`, or several of these.
Settings: TypeAlias = Mapping[str, tuple[str, ...]]


def settings_of(varied: Sequence[str]) -> Settings:
    """Return every combination of values: `varied` has texts such as pretrain.lr=1e-3,2e-3.

    Raises BadInput if there is none, for a text that names no key, a key twice, one value or a
    value twice, and for too many combinations.
    """
    if not varied:
        raise BadInput("name what to vary: --vary pretrain.lr=1e-3,2e-3. Nothing was started.")
    choices = [_overrides_of(text) for text in varied]
    keys = [overrides[0].partition("=")[0] for overrides in choices]
    for names in (keys, *choices):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise BadInput(
                f"--vary: {twice} is given twice. Nothing was started. Give each value of a key "
                "once, such as --vary KEY=a,b,c."
            )
    settings = {" ".join(chosen): chosen for chosen in itertools.product(*choices)}
    if len(settings) > MOST_SETTINGS:
        raise BadInput(
            f"--vary: {len(settings):,} combinations are more than {MOST_SETTINGS}. Nothing "
            "was started. Give fewer values, or vary one key after the other."
        )
    return settings


def _overrides_of(text: str) -> list[str]:
    """Return `key=value` of each value."""
    key, equals, rest = text.partition("=")
    key, values = key.strip(), _split(rest)
    if not equals or not key or not all(values):
        raise BadInput(
            f"--vary {text!r:.200} is not key=value,value, such as pretrain.lr=1e-3,2e-3. Nothing "
            "was started."
        )
    if len(values) < 2:
        raise BadInput(
            f"--vary {text}: one value leaves nothing to compare. Nothing was started. Give two or "
            f"more, such as --vary {key}={values[0]},OTHER."
        )
    return [f"{key}={value}" for value in values]


def _split(text: str) -> list[str]:
    """Return the values, which commas separate, except within brackets."""
    values, depth = [""], 0
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


@dataclass(frozen=True)
class Trial:
    """A run of a search: a setting, by its name, with a seed, which the override `seeded` gives.

    `overrides` make its job of the job of the request. `trunk` is the name of the run that it
    continues; None: it trains from the start. The setting of a trunk has no name.
    """

    job: Job
    overrides: tuple[str, ...]
    setting: str
    seed: int
    seeded: str
    trunk: str | None

    @property
    def name(self) -> str:
        """The run's name in the store."""
        return self.job.name


def branch_of(job: Job, settings: Settings) -> int:
    """Return the number of the phase with which settings that differ only in later phases begin to
    differ. 0: they differ in something else, or in the first phase."""
    matches = [_OF_PHASE.match(text) for overrides in settings.values() for text in overrides]
    phase = min(int(match[1]) if match else 0 for match in matches)
    return phase if phase <= len(job.borders) else 0


def rounds_of(job: Job, settings: int, seeds: int, *, branched: bool = False) -> list[Round]:
    """Return the rounds: one to the end if the settings are `branched` off a trunk, because a part
    of the last phase misleads. Raises BadInput if the stage's steps are not known, or too few."""
    stage = job.train_stages[0]
    section = job.section(stage)
    if section.steps is None:
        raise BadInput(
            f"{stage}.steps: `pion try` stops its runs at shares of the steps, so give steps in "
            "place of epochs. Nothing was started."
        )
    if not 1 <= seeds <= MOST_SEEDS:
        raise BadInput(
            f"--seeds {seeds}: give 1 to {MOST_SEEDS}; with 1, nothing tells a difference from "
            "noise. Nothing was started."
        )
    if branched:
        return [Round(section.steps, settings, seeds)]
    rounds = plan_rounds(settings, section.steps, seeds)
    if not rounds:
        raise BadInput(
            f"{stage}.steps {section.steps:,}: too few to compare {settings} settings in "
            "rounds. Nothing was started. Give more steps, or fewer values."
        )
    return rounds


def make_trials(
    request: Request, settings: Settings, seeds: Mapping[int, str], *, of: str, fork: bool
) -> tuple[list[Trial], dict[str, Trial]]:
    """Return the runs of all settings with all seeds, and the trunks that are to be trained, by
    their names.

    `seeds` are their overrides by number. Each part of a run's name is a hash of what the run
    learns, and of the steps `of` the rounds. The runs `fork` a trunk if they share one. Raises
    BadInput for settings that can't be compared.
    """
    job = request.job()
    stage = job.train_stages[0]
    common = as_overrides(_changes_of_all(job, stage))
    usual = request.job(*common)
    varied = {name: request.job(*overrides, *common) for name, overrides in settings.items()}
    for name, changed in varied.items():
        refuse_unpaired(name, usual, changed)
    refuse_same(varied, stage)

    def trial(setting: str, seed: int, suffix: str = "", trunk: str | None = None) -> Trial:
        changes = [*settings.get(setting, ()), *common, seeds[seed]]
        digest = digest_job(request.job(*changes)).stages[stage]
        overrides = (*changes, f"name={run_name(job.name, setting, seed, f'{digest}{suffix}')}")
        return Trial(request.job(*overrides), overrides, setting, seed, seeds[seed], trunk)

    trunks = [trial("", seed) for seed in seeds] if fork and request.trunk is None else []
    continued = dict.fromkeys(seeds, request.trunk) | {each.seed: each.name for each in trunks}
    trials = [
        trial(setting, seed, f" {of}" if trunk is None else f" {of} {trunk}", trunk)
        for setting, (seed, trunk) in itertools.product(settings, continued.items())
    ]
    return trials, {each.name: each for each in trunks}


def _changes_of_all(job: Job, stage: str) -> dict[str, Any]:
    """Return what all runs of a search change of the job: they do one stage, and measure only where
    they pause and at the end."""
    changes: dict[str, Any] = {
        "publish": None,
        "deadline": None,
        # That of conversations may have decided the model's context.
        "model.seq_len": job.model_config_resolved().seq_len,
        "evaluate.every": job.section(stage).total_steps,
        "evaluate.prompts": [],
        "evaluate.checkpoint": "last",
        **without_questions(job),
        "evaluate.final_rows": min(job.evaluate.final_rows, FEW_ROWS),
    }
    later = job.train_stages[job.train_stages.index(stage) + 1 :]
    return changes | dict.fromkeys(later)


def as_overrides(changes: Mapping[str, Any]) -> list[str]:
    """Return changes by dotted key as `key=value` arguments."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def refuse_unpaired(name: str, usual: Job, varied: Job) -> None:
    """Raise BadInput if a setting has `varied` the usual job so that they can't be compared."""
    stage = usual.train_stages[0]
    same_data = digest_job(usual).data == digest_job(varied).data
    if not same_data or _tokenizer_sources(usual) != _tokenizer_sources(varied):
        raise BadInput(
            f"--vary {name}: it changes the data or the tokenizer, so its runs are not paired with "
            "the others: they learn from other rows, and are measured on other rows. Nothing was "
            "started. Compare whole runs instead: pion status A B --compare."
        )
    before, after = usual.section(stage), varied.section(stage)
    lengths = {
        f"{stage}.steps": (before.steps, after.steps),
        f"{stage}.global_batch": (before.global_batch, after.global_batch),
        "seed": (usual.seed, varied.seed),
        "name or store": ((usual.name, usual.store), (varied.name, varied.store)),
    }
    for field, (old, new) in lengths.items():
        if old != new:
            raise BadInput(
                f"--vary {name}: runs of another {field} are not paired step by step. Nothing was "
                "started. Give it as an override instead, the same for all runs."
            )


def _tokenizer_sources(job: Job) -> set[str]:
    """Return the names of the sources that the job's tokenizer learns from."""
    trained = job.tokenizer is not None and job.tokenizer.train is not None
    return set(job.tokenizer_sources) if trained else set()


def refuse_same(varied: Mapping[str, Job], stage: str) -> None:
    """Raise BadInput if two settings give the same result, such as fields of hardware."""
    first: dict[str, str] = {}
    for setting, job in varied.items():
        same = first.setdefault(digest_job(job).stages[stage], setting)
        if same != setting:
            raise BadInput(
                f"--vary: {same} and {setting} train the same: they change nothing that "
                f"{stage} learns. Nothing was started."
            )


def run_name(job: str, setting: str, seed: int, digest: str) -> str:
    """Return the readable name of a run of a search. Each `digest` has another name."""
    title = (setting or "trunk").replace(" ", "+")
    label = re.sub(r"[^A-Za-z0-9_.+=@-]+", "_", title)[:LONGEST_LABEL]
    unique = hashlib.sha256(f"{digest} {seed}".encode()).hexdigest()[:8]
    return f"{job}-try-{label}-{unique}"
