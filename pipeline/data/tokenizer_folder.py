"""The tokenizer of a model that a run starts from, and its chat format, next to prepared data.

Training, evaluation, samples and checkpoints read them there: see `pion.data.chat_format`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pion.data.conversation import chat_template
from pion.data.special_tokens import GENERATION_CONFIG
from pion.data.template_source import (
    DATE_FILE,
    TEMPLATE_FILE,
    find_template,
    with_settings,
    write_template_date,
)
from pion.data.token_names import FILES as NAMES_FILES
from pion.data.tokenizer import Tokenizer
from pion.exports.tokenizer_files import copy_tokenizer
from pion.untrusted import LARGEST_TOKENIZER, read_file
from pipeline.job import Job

# What a checkpoint needs of the folder. Other files of a tokenizer repeat what tokenizer.json has.
NEEDED = ("tokenizer.json", *NAMES_FILES, GENERATION_CONFIG, TEMPLATE_FILE, DATE_FILE)


def bring_tokenizer(job: Job, source: Path, folder: Path, *, conversations: bool) -> Tokenizer:
    """Copy the tokenizer of `job.base` from the folder `source`; return it.

    For `conversations`, the folder gets the chat template that they are written in. Raises
    BadInput for files that can't be used, and OSError if the folder can't be written.
    """
    tokenizer = Tokenizer.from_file(source / "tokenizer.json")
    copy_tokenizer(
        source, folder, template=_template(job, source, tokenizer) if conversations else None
    )
    if (source / GENERATION_CONFIG).is_file():
        shutil.copyfile(source / GENERATION_CONFIG, folder / GENERATION_CONFIG)
    if conversations and job.uses_model_template and job.base and job.base.date:
        write_template_date(folder, job.base.date)
    return tokenizer


def _template(job: Job, source: Path, tokenizer: Tokenizer) -> str | None:
    """Return the template of conversations; None if it is the model's own as it is."""
    assert job.sft is not None
    if not job.uses_model_template:
        return chat_template(tokenizer)
    template = find_template(source)
    assert template is not None  # the base has one
    system, options = job.sft.system, job.sft.template_options
    whole = with_settings(template, system, options, tokenizer.specials)
    return None if whole == template else whole


def needed_files(folder: Path) -> dict[str, bytes]:
    """Return the content of the files that a checkpoint needs to be talked to, by name.

    Raises BadInput for a file that is too large, and OSError if one can't be read.
    """
    paths = {name: folder / name for name in NEEDED}
    return {
        name: read_file(path, LARGEST_TOKENIZER) for name, path in paths.items() if path.is_file()
    }
