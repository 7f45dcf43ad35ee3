"""The model that `prefer` has started from, for the evaluation after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pion.errors import BadInput, PionError
from pion.untrusted import parse_object, read_file
from pipeline.console.messages import Note, Say
from pipeline.job import Job
from pipeline.stages.measures import PreferenceStart
from pipeline.state.head import REFERENCE, Head
from pipeline.state.run_state import RunState
from pipeline.state.shared.bases import bring_base
from pipeline.state.shared.folder import REFERENCE_FILE, bring_data
from pipeline.state.stores.errors import StoreError
from pipeline.state.stores.retry import Patience

if TYPE_CHECKING:
    from pion.model.decoder import Decoder


def model_before_prefer(
    job: Job,
    run: RunState,
    head: Head,
    models: Mapping[str, Path],
    say: Say,
    patiently: Patience,
) -> PreferenceStart:
    """Return the model that the job's `prefer` starts from; `models` are those of the run's stages.

    If it is not to be found any more, or its numbers are damaged, `say` gets a note. Raises
    StoreError.
    """
    assert job.prefer is not None
    source, before = job.prefer.init_from, job.stage_before("prefer")
    reference = patiently(partial(_reference, job, run, head, say))
    if source is not None:
        return PreferenceStart("start", _named(job, source, reference, say), reference)
    if before is not None:
        return PreferenceStart(before, partial(_in_folder, models[before]), reference)
    assert job.base is not None  # a first stage starts from something
    folder = patiently(partial(bring_base, run.store, job.base.hash))
    return PreferenceStart("base", partial(_in_folder, folder), reference)


def _in_folder(folder: Path) -> Decoder:
    from pipeline.models.load import load_model_in

    return load_model_in(folder)


def _named(job: Job, source: str, reference: Path | None, say: Say) -> Callable[[], Decoder] | None:
    """Return what loads the model of `prefer.init_from`; None if it is gone or another one since.

    It is loaded once to see that it can be.
    """
    from pipeline.models.find import find_model
    from pipeline.models.load import fitted, load_model

    def load() -> Decoder:
        found = load_model(find_model(job.model_name(source)))
        return fitted(job.model_config_resolved(), found, source, job.seed)

    try:
        _require_same(job, load(), reference)
    except StoreError:
        raise
    except PionError as error:
        say(Note(f"prefer.init_from: {error}. What this model was like before is not measured"))
        return None
    return load


def _require_same(job: Job, model: Decoder, reference: Path | None) -> None:
    """Raise BadInput if the reference says that the stage has started from another model. LoRA's
    says it of the base's file, which is not compared."""
    from pion.model.parameters import tensors_sha256

    assert job.prefer is not None
    if reference is None or job.prefer.lora is not None:
        return
    where = reference / REFERENCE_FILE
    began = parse_object(read_file(where), str(where)).get("weights")
    if began != tensors_sha256(model.state_dict()):
        raise BadInput(f"{job.prefer.init_from} is not the model that prefer has started from")


def _reference(job: Job, run: RunState, head: Head, say: Say) -> Path | None:
    """Return the folder with the numbers of the reference; None if there are none to be used."""
    if not job.needs_reference("prefer") or REFERENCE not in head.data:
        return None
    try:
        return bring_data(run, head, REFERENCE)
    except StoreError:
        raise
    except PionError as error:
        say(Note(f"the numbers of the reference are not used: {error}"))
        return None
