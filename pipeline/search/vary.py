"""The settings of a search: every combination of the values of `--vary`, and what is refused.

Settings are compared at the same steps, on the same rows, with the same seeds. So a setting that
changes the rows, or how many of them a step has, can't be compared. Settings that differ only in
later phases share the steps before these phases.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.search.halving import Round, plan_rounds
from pipeline.search.runs import Run

# The bounds of a search.
MOST_SETTINGS, MOST_SEEDS = 64, 32
_OF_PHASE = re.compile(r"pretrain\.phases\.(\d+)\.")
# Characters of a run's name that say what it varies; a hash says the rest.
LONGEST_LABEL = 40
_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True)
class Setting:
    """A combination of values: `pretrain.lr=2e-3`, or several of these."""

    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """How it is called: its overrides, as they were given."""
        return " ".join(self.overrides)

    @property
    def values(self) -> str:
        """Its values alone."""
        return " ".join(override.partition("=")[2] for override in self.overrides)


def settings_of(varied: Sequence[str]) -> list[Setting]:
    """Return every combination of values: `varied` has texts such as pretrain.lr=1e-3,2e-3.

    Raises BadInput if there is none, for a text that names no key, a key twice, one value or a
    value twice, and for too many combinations.
    """
    if not varied:
        raise BadInput("name what to vary: --vary pretrain.lr=1e-3,2e-3. Nothing was started.")
    keys = [_key_and_values(text) for text in varied]
    names = [key for key, _ in keys]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(
            f"--vary {twice} is given twice. Nothing was started. Give all its values in one, such "
            f"as --vary {twice}=a,b,c."
        )
    choices = [[f"{key}={value}" for value in values] for key, values in keys]
    combinations = [Setting(tuple(chosen)) for chosen in itertools.product(*choices)]
    if len(combinations) > MOST_SETTINGS:
        raise BadInput(
            f"--vary: {len(combinations):,} combinations are more than {MOST_SETTINGS}. Nothing "
            "was started. Give fewer values, or vary one key after the other."
        )
    return combinations


def _key_and_values(text: str) -> tuple[str, list[str]]:
    key, equals, rest = text.partition("=")
    key = key.strip()
    values = _split(rest)
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
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise BadInput(f"--vary {key}: {twice} is given twice. Nothing was started.")
    return key, values


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
class Comparison:
    """How settings are compared: with how many seeds, and by the loss on which source (None: by the
    mean of all). All seeds may continue one run that is there, the `trunk`; then they are those of
    the order in which the first phase that differs reads its rows."""

    seeds: int
    trunk: str | None = None
    on: str | None = None


def branch_of(job: Job, settings: Sequence[Setting]) -> int:
    """Return the number of the phase with which settings that differ only in later phases begin to
    differ. 0: they differ in something else, or in the first phase."""
    keys = [override.partition("=")[0] for one in settings for override in one.overrides]
    found = [_OF_PHASE.match(key) for key in keys]
    phase = min((int(match[1]) if match else 0 for match in found), default=0)
    return phase if phase <= len(job.borders) else 0


def rounds_of(
    job: Job, stage: str, settings: Sequence[Setting], seeds: int, *, branched: bool = False
) -> list[Round]:
    """Return the rounds: one to the end if the settings are `branched` off a trunk, because a part
    of the last phase misleads. Raises BadInput if the stage's steps are not known, or too few."""
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
        return [Round(section.steps, len(settings), 1, seeds)]
    try:
        return plan_rounds(len(settings), section.steps, seeds)
    except ValueError:
        raise BadInput(
            f"{stage}.steps {section.steps:,}: too few to compare {len(settings)} settings in "
            "rounds. Nothing was started. Give more steps, or fewer values."
        ) from None


def refuse_unpaired(setting: Setting, own: Run, varied: Run) -> None:
    """Raise BadInput if a run that the setting has `varied` can't be compared with one of the job's
    `own`."""
    name, stage = setting.name, own.job.train_stages[0]
    if own.digests.data != varied.digests.data or _learned(own.job) != _learned(varied.job):
        raise BadInput(
            f"--vary {name}: it changes the data or the tokenizer, so its runs are not paired with "
            "the others: they learn from other rows, and are measured on other rows. Nothing was "
            "started. Compare whole runs instead: pion status A B --compare."
        )
    before, after = own.job.section(stage), varied.job.section(stage)
    lengths = {
        f"{stage}.steps": (before.steps, after.steps),
        f"{stage}.global_batch": (before.global_batch, after.global_batch),
        "seed": (own.job.seed, varied.job.seed),
        "name or store": ((own.name, own.job.store), (varied.name, varied.job.store)),
    }
    for field, (old, new) in lengths.items():
        if old != new:
            raise BadInput(
                f"--vary {name}: runs of another {field} are not paired step by step. Nothing was "
                "started. Give it as an override instead, the same for all runs."
            )


def _learned(job: Job) -> set[str]:
    """Return the names of the sources that the job's tokenizer learns from."""
    trained = job.tokenizer is not None and job.tokenizer.train is not None
    return set(job.tokenizer_sources) if trained else set()


def refuse_same(varied: Mapping[Setting, Run], stage: str) -> None:
    """Raise BadInput if two settings give the same result, such as fields of hardware."""
    first: dict[str, Setting] = {}
    for setting, run in varied.items():
        same = first.setdefault(run.digests.stages[stage], setting)
        if same is not setting:
            raise BadInput(
                f"--vary: {same.name} and {setting.name} train the same: they change nothing that "
                f"{stage} learns. Nothing was started."
            )


def run_name(job: str, setting: Setting, seed: int, digest: str) -> str:
    """Return the readable name of a run of a search. Each `digest` has another name."""
    label = re.sub(r"[^A-Za-z0-9_.+=@-]+", "_", setting.name.replace(" ", "+"))[:LONGEST_LABEL]
    own = hashlib.sha256(f"{digest} {seed}".encode()).hexdigest()[:8]
    return f"{job}-try-{label}-{own}"
