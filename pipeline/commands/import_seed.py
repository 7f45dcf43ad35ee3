"""`pion import-seed`: convert a seed's checkpoint to a folder that Pion can load and train from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pion.config.presets import ORIGINALS
from pion.errors import BadInput
from pion.formats.target_folder import refuse_current_folder
from pion.formats.weights import WEIGHTS
from pipeline.models.find import CONFIG, find_model
from pipeline.models.load import load_model

if TYPE_CHECKING:
    from pion.data.tokens.tokenizer import Tokenizer
    from pion.model.decoder import Decoder


def import_seed_folder(file: Path, folder: Path, tokenizer_file: Path | None) -> str:
    """Write `folder` from a seed's `.pt` file and return a sentence about it.

    Without a `tokenizer_file`, a tokenizer next to the file is used. A fine-tuned model also gets
    the chat template. Nothing pickled is executed.

    Raises:
        BadInput: the file is not a seed's checkpoint, the tokenizer does not fit it, or `folder` is
            in use.
    """
    from pion.data.tokens.tokenizer import Tokenizer

    found_model = find_model(str(file))
    if found_model.kind != "seed":
        raise BadInput(
            f"{file} is not a .pt checkpoint of an original {ORIGINALS}. Pion can load it without "
            "an import"
        )
    refuse_current_folder(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} exists and is not empty. Choose a different folder")
    source = tokenizer_file or found_model.tokenizer
    tokenizer = Tokenizer.from_file(source) if source else None
    model = load_model(found_model)
    if tokenizer is not None:
        tokenizer.fits(model.config.vocab_size, where=str(source))
        _require_all_ids(tokenizer, str(source), file)

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(partial, model, tokenizer, chat=found_model.chat)
        partial.rename(folder)  # fails unless `folder` is still absent or empty
    except OSError as error:
        raise BadInput(
            f"can't write {folder} ({error.strerror or error}). {file} is unchanged, and no part "
            "of the folder is left. Free some space, or choose a different folder. Then run the "
            "same command again."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    note = "" if tokenizer else "; without a tokenizer (pion chat and pion generate need one)"
    return f"{folder}: {file.name}, {model.num_params():,} parameters{note}"


def _require_all_ids(tokenizer: Tokenizer, source: str, file: Path) -> None:
    """Raise BadInput if the model has ids that its tokenizer lacks, as after fine-tuning."""
    from pion.formats.seeds import ids_of_seed

    ids = ids_of_seed(file)
    if ids is not None and tokenizer.vocab_size < ids:
        raise BadInput(
            f"{source} has {tokenizer.vocab_size:,} ids, but {file} has learned {ids:,}: "
            "fine-tuning adds ids to the vocabulary. Nothing was written. Give the tokenizer "
            "that was saved with this checkpoint: --tokenizer FILE"
        )


def _write(folder: Path, model: Decoder, tokenizer: Tokenizer | None, *, chat: bool) -> None:
    from pion.data.chat.conversation import chat_template
    from pion.formats.weights import write_safetensors

    folder.mkdir(parents=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_safetensors(folder / WEIGHTS, tensors)
    config = json.dumps(model.config.to_dict(), indent=1)
    (folder / CONFIG).write_text(config + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
        if chat:
            template = chat_template(tokenizer)
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
