"""`pion export`: write a model for transformers or llama.cpp, and check what was written."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pion.errors import BadInput
from pipeline.console.formats import show, size
from pipeline.models.find import FoundModel, find_model
from pipeline.models.load import load_model, load_tokenizer

if TYPE_CHECKING:
    from pion.formats.gguf.convert import Type
    from pion.model.decoder import Decoder

# Texts to compare logits on. Any English text would do.
_TEXTS = [text for text in (argparse.__doc__, json.__doc__) if text]
# A target that ends so is a GGUF file. Any other target is a folder.
GGUF = ".gguf"


def export(
    model: str,
    target: str,
    *,
    model_type: str | None = None,
    embeddings: str = "float32",
    gguf_type: Type | Literal["q4_k_m"] | None = None,
) -> None:
    """Export the model called `model` to the folder or GGUF file `target`.

    `model_type` is an architecture of transformers; None: the first that computes the model.
    `embeddings` is the dtype of the rows of token ids. `gguf_type` says how a GGUF file stores
    matrices; None: f16. A folder has none.

    Raises BadInput for a model without a tokenizer, and for an architecture or a file that can't
    express the model. Raises PionError if what was written is not the same model.
    """
    to_gguf = target.endswith(GGUF)
    if gguf_type is not None and not to_gguf:
        raise BadInput(
            f"--type {gguf_type} is for GGUF files, and {target} is a folder. Name a file "
            f"such as {target}{GGUF}, or leave out --type."
        )
    found_model = find_model(model)
    load_tokenizer(found_model)  # before torch is imported: it may be missing
    if to_gguf:
        kind: Type = "f16"
        program = None
        if gguf_type == "q4_k_m":
            from pion.formats.gguf.four_bits import find_quantizer

            program = find_quantizer(model, Path(target))
        elif gguf_type is not None:
            kind = gguf_type
        _export_file(found_model, Path(target), model_type, embeddings, kind, program)
    else:
        difference = _export_folder(found_model, _load(found_model, embeddings), target, model_type)
        show(
            f"{target}: {found_model.label}; loaded again with transformers, "
            f"logits differ by at most {difference:.1e}"
        )


def _load(found_model: FoundModel, embeddings: str) -> Decoder:
    from pion.model.parameters import round_to_bfloat16, vocabulary_rows

    decoder = load_model(found_model)
    if embeddings == "bfloat16":
        # The export then has half as many bytes for them.
        round_to_bfloat16(decoder, vocabulary_rows(decoder))
    return decoder


def _export_folder(
    found_model: FoundModel, decoder: Decoder, folder: str | Path, model_type: str | None
) -> float:
    """Write the folder, and return how far its logits are from the model's."""
    from pion.formats.export import export_model
    from pion.formats.huggingface.tokenizer_files import exported_tokenizer
    from pion.formats.verify import verify_export

    assert found_model.tokenizer is not None
    tokenizer = exported_tokenizer(found_model.tokenizer, imported=decoder.config.imported)
    export_model(decoder, tokenizer, folder, model_type=model_type)
    return verify_export(folder, decoder, tokenizer, _TEXTS, model_type=model_type)


def _export_file(
    found_model: FoundModel,
    out: Path,
    model_type: str | None,
    embeddings: str,
    kind: Type,
    program: str | None,
) -> None:
    """Write the GGUF file of the model, by way of the folder for transformers."""
    from pion.formats.gguf.convert import check_file, convert, require_convertible
    from pion.formats.gguf.four_bits import quantize

    check_file(out)
    assert found_model.tokenizer is not None
    decoder = _load(found_model, embeddings)
    require_convertible(decoder.config, found_model.tokenizer, model_type)
    folder = out.with_name(f".{out.name}.export")
    try:
        _export_folder(found_model, decoder, folder, model_type)
        del decoder
        # Other programs show this name: of a folder, without the folders above it.
        name = (
            Path(found_model.label).name if Path(found_model.label).exists() else found_model.label
        )
        unquantized = out if program is None else folder / f"whole{GGUF}"
        written = convert(folder, unquantized, kind, name=name)
        bytes_ = written.size if program is None else quantize(program, unquantized, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(
        f"{out}: {found_model.label}; {kind} for the architecture {written.architecture} of "
        f"llama.cpp, {size(bytes_)}; read back, and all {written.tensors} tensors are the model's"
        f"{'' if kind == 'f32' else ' within the rounding of ' + kind}"
        f"{'' if program is None else f'. {program} then rounded them to 4 bits (Q4_K_M)'}"
    )
    if written.caveat:
        show(f"note: {written.caveat}")
    if written.kept_f16:
        show(
            f"f16 instead of q8_0: {len(written.kept_f16)} matrices whose rows are no multiple of "
            f"32 ({written.kept_f16[0]})"
        )
