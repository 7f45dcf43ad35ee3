"""Write the folder that is published: a model or an adapter, verified, with its card and plot."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput, PionError
from pipeline.base.terms import Terms
from pipeline.report.history import RunHistory
from pipeline.report.model_card import CardExtras, model_card
from pipeline.stages.publish_adapter import verify_adapter, write_adapter

if TYPE_CHECKING:
    from pion.data.tokenizer import Tokenizer
    from pion.model.decoder import Decoder
    from pion.rounding import RoundingCost


def write_published(
    history: RunHistory,
    model: Path,
    decoder: Decoder,
    texts: Sequence[str],
    folder: Path,
    terms: Terms | None = None,
) -> dict[str, Any]:
    """Write the model or its adapter, the card and the plot into `folder`; return what was counted
    and measured, and what has loaded the folder again (`loaded_by`).

    `decoder` is the model in the checkpoint folder `model`, and `terms` are those of the model that
    the run started from; its legal files are copied. Raises PionError if transformers, or of
    an adapter Pion, does not load the same model from `folder`, and OSError if `folder` can't be
    written.
    """
    assert history.job.publish is not None
    export = _export_adapter if history.job.publish.adapter else _export
    written = export(history, model, decoder, texts, folder, terms)
    for path in () if terms is None else terms.files:
        shutil.copyfile(path, folder / path.name)
    return written


def _export(
    history: RunHistory,
    model: Path,
    decoder: Decoder,
    texts: Sequence[str],
    folder: Path,
    terms: Terms | None,
) -> dict[str, Any]:
    from pion.data.tokenizer import Tokenizer
    from pion.export import export_model, round_embeddings
    from pion.model.roles import vocabulary_rows
    from pion.verify import verify_export

    tokenizer_path = model / "tokenizer.json"
    tokenizer = Tokenizer.from_file(tokenizer_path)
    job = history.job
    assert job.publish is not None
    if job.publish.embeddings == "bfloat16":
        round_embeddings(decoder)
    written, cost = decoder, None
    if job.publish.dtype == "bfloat16":
        decoder, written, cost = _rounded(decoder, tokenizer, texts)
    try:
        export_model(written, tokenizer_path, folder, chat=job.sft is not None)
    except BadInput as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise error.__cause__ from None  # the caller's message names publish.to
    with _nothing_published(model):
        difference = verify_export(folder, decoder, tokenizer_path, texts)
    weights = decoder.state_dict()
    dropped = sum(
        weights[name][tokenizer.vocab_size :].numel() for name in vocabulary_rows(decoder)
    )
    parameters = decoder.num_params() - dropped
    extra = CardExtras(rounding=cost, terms=terms)
    card = model_card(
        history, decoder.config, parameters=parameters, vocab_size=tokenizer.vocab_size, extra=extra
    )
    _write_card(folder, card, history)
    return _result(parameters, difference, "transformers")


def _export_adapter(
    history: RunHistory,
    model: Path,
    decoder: Decoder,
    texts: Sequence[str],
    folder: Path,
    terms: Terms | None,
) -> dict[str, Any]:
    """Write the adapter in `model`, its card and its plot into `folder`, as `_export` does."""
    from pion.data.tokenizer import Tokenizer

    adapter, parameters = write_adapter(history, model, folder)
    with _nothing_published(model):
        difference = verify_adapter(folder, decoder, model / "tokenizer.json", texts)
    vocab_size = Tokenizer.from_file(model / "tokenizer.json").vocab_size
    extra = CardExtras(adapter=adapter, terms=terms)
    card = model_card(
        history, decoder.config, parameters=parameters, vocab_size=vocab_size, extra=extra
    )
    _write_card(folder, card, history)
    return _result(parameters, difference, "Pion")


def _result(parameters: int, difference: float, loaded_by: str) -> dict[str, Any]:
    measured = {"parameters": parameters, "max_logit_difference": difference}
    return {**measured, "loaded_by": loaded_by}


def _rounded(
    decoder: Decoder, tokenizer: Tokenizer, texts: Sequence[str]
) -> tuple[Decoder, Decoder, RoundingCost]:
    """Return the rounded model, in fp32 and in bfloat16, and what the rounding costs."""
    import torch

    from pion.model.decoder import Decoder
    from pion.rounding import rounded, rounding_cost

    after = rounded(decoder)
    cost = rounding_cost(decoder, after, tokenizer, texts)
    return after, Decoder.from_state(after.config, after.state_dict(), torch.bfloat16), cost


def _write_card(folder: Path, card: str, history: RunHistory) -> None:
    from pipeline.report.plots import loss_plot

    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "loss.png").write_bytes(loss_plot(history.curves()))


@contextmanager
def _nothing_published(model: Path) -> Iterator[None]:
    """Say of a PionError that nothing was published, and where the model is safe."""
    try:
        yield
    except PionError as error:
        raise PionError(
            f"Nothing was published: {error} The trained model is safe in {model}."
        ) from error
