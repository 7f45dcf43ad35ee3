"""Write the folder that is published: a model or an adapter, verified, with its card and plot."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput, PionError, told
from pion.formats.weights import GGUF_FILE, MODELFILE
from pipeline.base.licence import Terms, terms_of
from pipeline.console.messages import Note, Say
from pipeline.job import Job, Publish
from pipeline.job.stages import WORDS
from pipeline.models.find import found_in
from pipeline.models.load import load_model
from pipeline.report.history import RunHistory
from pipeline.report.model_card import CardExtras, model_card
from pipeline.state.shared.bases import BASES

if TYPE_CHECKING:
    from pion.config.lora import Adapter
    from pion.data.tokens.tokenizer import Tokenizer
    from pion.formats.export import RoundingCost
    from pion.formats.huggingface.tokenizer_files import ModelTokenizer
    from pion.model.decoder import Decoder


def check_adapter(job: Job, *, to_hub: bool) -> None:
    """Raise BadInput, before training, for an adapter that nobody could use after it.

    These are adapters of models without a stock class in transformers and, on the Hub, of a base
    that exists only here.
    """
    from pion.formats.peft_folder import require_adaptable

    first = last = job.train_stages[-1]
    while (continued := job.lora_before(first)) is not None:
        first = continued
    lora, before, start = job.lora(last), job.stage_before(first), job.base
    assert lora is not None
    with told("publish.adapter: ", ". Nothing was started."):
        require_adaptable(job.model_config_resolved(), lora)
    only_here = None
    if before is not None:
        only_here = f"the {WORDS[before].after} model of this run"
    elif start is not None and start.commit is None:
        only_here = start.source
    if to_hub and only_here is not None:
        raise BadInput(
            f"publish.adapter: the base of the adapter, {only_here}, exists only here, so an "
            "adapter on the Hub would be of no use. Nothing was started. Publish the merged model, "
            "or publish the base first and name its repository in model.from."
        )


def _write_adapter(model: Finished, folder: Path) -> tuple[Adapter, int]:
    """Write the adapter in `model` to the new `folder`, with its tokenizer.

    Return its record, in which the base has a name that is known outside the run, and the number of
    its parameters.
    """
    from pion.config.lora import read_record
    from pion.formats.huggingface.tokenizer_files import write_tokenizer
    from pion.formats.model_tensors import read_adapter_tensors
    from pion.formats.peft_folder import write_adapter_folder

    record, job = read_record(model.folder), model.history.job
    assert record is not None
    base, start = record.base, job.base
    if base.name.startswith("checkpoints/"):
        stage = base.name.split("/")[1]
        base = dataclasses.replace(base, name=f"{model.history.url}@{stage}")
    elif start is not None and base.name.startswith(f"{BASES}/"):
        name = job.model_name(start.source, start.commit)
        base = dataclasses.replace(base, name=name, commit=start.commit)
    record = dataclasses.replace(record, base=base)
    config, tensors = model.decoder.config, read_adapter_tensors(model.folder)
    folder.mkdir(parents=True)
    write_adapter_folder(folder, config, record, tensors)
    write_tokenizer(folder, model.tokenizer, config.seq_len, chat=True)
    return record, sum(tensor.numel() for tensor in tensors.values())


def _verify_adapter(folder: Path, model: Finished) -> float:
    """Load `folder` with its base, as `pion chat` does; compare its logits with those of `model`.

    Return the greatest difference. A rented machine has no peft, so this is our own loader. Raises
    PionError if it does not load, or if logits differ by more than an export's may.
    """
    import torch

    from pion.data.tokens.tokenizer import Tokenizer
    from pion.formats.verify import COMPARED_TOKENS, MAX_LOGIT_DIFFERENCE, SAFE

    try:
        loaded = load_model(found_in(folder))
    except BadInput as error:
        raise PionError(f"{folder}: Pion can't load the adapter again: {error}. {SAFE}") from error
    trained, tokenizer = model.decoder, Tokenizer.from_file(model.tokenizer_path)
    most = min(COMPARED_TOKENS, trained.config.seq_len)
    largest = 0.0
    with torch.inference_mode():
        for ids in filter(None, map(tokenizer.encode, model.texts)):
            tokens = torch.tensor([ids[:most]])
            ours, theirs = (m(tokens)[..., : tokenizer.vocab_size] for m in (trained, loaded))
            worst = float((ours - theirs).abs().max())
            if not worst <= MAX_LOGIT_DIFFERENCE:  # not `>`: a NaN must not pass
                raise PionError(
                    f"{folder}: the adapter gives different logits than the trained model: they "
                    f"differ by {worst:.3g} (allowed: {MAX_LOGIT_DIFFERENCE:g}). {SAFE}"
                )
            largest = max(largest, worst)
    return largest


@dataclass(frozen=True)
class Finished:
    """A trained model that is to be published.

    Attributes:
        history: the run that trained it.
        publish: how its job wants it published.
        folder: its checkpoint.
        decoder: the model in that checkpoint.
        texts: held-out texts to compare the exported model on.
        base: the folder with the small files of the model that the run started from; None: there
            is none.
    """

    history: RunHistory
    publish: Publish
    folder: Path
    decoder: Decoder
    texts: Sequence[str]
    base: Path | None

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    @cached_property
    def tokenizer(self) -> Path | ModelTokenizer:
        """How the tokenizer is exported, with the template that the model learned."""
        from pion.formats.huggingface.tokenizer_files import exported_tokenizer

        return exported_tokenizer(
            self.tokenizer_path, imported=self.decoder.config.imported, originals=self.base
        )

    @cached_property
    def terms(self) -> Terms | None:
        """The terms of the model that the run started from; None: there is none."""
        return None if self.base is None else terms_of(self.base)


def write_published(model: Finished, folder: Path, say: Say) -> dict[str, Any]:
    """Write the model or its adapter, the card and the plot into `folder`; say how it was checked,
    and return what was counted and measured.

    The legal files of the model that the run started from are copied. Raises PionError if
    transformers, or of an adapter Pion, does not load the same model from `folder`, and OSError if
    `folder` can't be written.
    """
    adapter = model.publish.adapter
    written = (_export_adapter if adapter else _export)(model, folder)
    for path in () if model.terms is None else model.terms.files:
        shutil.copyfile(path, folder / path.name)
    worst = written["max_logit_difference"]
    loaded_by = "Pion" if adapter else "transformers"
    say(Note(f"{loaded_by} loads the same model: logits differ by {worst:.1g}"))
    if "gguf" in written:
        words = f"{GGUF_FILE} was read back: its tensors are the model's"
        say(Note(". ".join(filter(None, (words, written.get("gguf_caveat"))))))
    elif "gguf_failed" in written:
        text = (
            f"warning: publish.gguf: the model is published without a GGUF file: "
            f"{written['gguf_failed']}. To try again: pion export {model.folder} model.gguf"
        )
        say(Note(text))
    return written


def _export(model: Finished, folder: Path) -> dict[str, Any]:
    from pion.data.tokens.tokenizer import Tokenizer
    from pion.formats.export import export_model, exported_rows
    from pion.formats.verify import verify_export
    from pion.model.parameters import round_to_bfloat16, vocabulary_rows

    tokenizer, decoder = Tokenizer.from_file(model.tokenizer_path), model.decoder
    job, publish = model.history.job, model.publish
    if publish.embeddings == "bfloat16":
        round_to_bfloat16(decoder, vocabulary_rows(decoder))
    written, cost = decoder, None
    if publish.dtype == "bfloat16":
        decoder, written, cost = _rounded(decoder, tokenizer, model.texts)
    try:
        export_model(written, model.tokenizer, folder, chat=job.converses)
    except BadInput as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise error.__cause__ from None  # the caller's message names publish.to
    with _nothing_published(model.folder):
        difference = verify_export(folder, decoder, model.tokenizer, model.texts)
    gguf = _add_gguf(folder, job.name, decoder.config.seq_len) if publish.gguf else {}
    weights = decoder.state_dict()
    rows = exported_rows(decoder.config, tokenizer)
    dropped = sum(weights[name][rows:].numel() for name in vocabulary_rows(decoder))
    parameters = decoder.num_params() - dropped
    _write_card(
        folder,
        model,
        parameters,
        CardExtras(
            rounding=cost,
            terms=model.terms,
            gguf="gguf" in gguf,
            caveat=gguf.get("gguf_caveat", ""),
        ),
    )
    return {"parameters": parameters, "max_logit_difference": difference, **gguf}


def _add_gguf(folder: Path, name: str, seq_len: int) -> dict[str, str]:
    """Write the GGUF file and the Modelfile of the exported model next to it.

    Return the result `gguf` (the file) and perhaps `gguf_caveat`, or `gguf_failed` (why there is
    none): the verified weights are published without it.
    """
    from pion.formats.gguf.convert import convert
    from pion.formats.gguf.modelfile import modelfile

    try:
        caveat = convert(folder, folder / GGUF_FILE, "f16", name=name).caveat
        (folder / MODELFILE).write_text(modelfile(folder, GGUF_FILE, seq_len), encoding="utf-8")
    except Exception as error:  # even a mistake in this code must not cost the weights
        for file in (GGUF_FILE, MODELFILE):
            (folder / file).unlink(missing_ok=True)
        known = isinstance(error, PionError)
        return {"gguf_failed": str(error) if known else f"{type(error).__name__}: {error}"}
    return {"gguf": GGUF_FILE} | ({"gguf_caveat": caveat} if caveat else {})


def _export_adapter(model: Finished, folder: Path) -> dict[str, Any]:
    """Write the adapter in `model`, its card and its plot into `folder`, as `_export` does."""
    adapter, parameters = _write_adapter(model, folder)
    with _nothing_published(model.folder):
        difference = _verify_adapter(folder, model)
    _write_card(folder, model, parameters, CardExtras(adapter=adapter, terms=model.terms))
    return {"parameters": parameters, "max_logit_difference": difference}


def _rounded(
    decoder: Decoder, tokenizer: Tokenizer, texts: Sequence[str]
) -> tuple[Decoder, Decoder, RoundingCost]:
    """Return the rounded model, in fp32 and in bfloat16, and what the rounding costs."""
    import torch

    from pion.formats.export import rounded, rounding_cost
    from pion.model.decoder import Decoder

    after = rounded(decoder)
    cost = rounding_cost(decoder, after, tokenizer, texts)
    return after, Decoder.from_state(after.config, after.state_dict(), torch.bfloat16), cost


def _write_card(folder: Path, model: Finished, parameters: int, extra: CardExtras) -> None:
    from pion.data.tokens.tokenizer import Tokenizer
    from pion.formats.export import exported_rows
    from pipeline.report.plots import loss_plot

    config = model.decoder.config
    rows = exported_rows(config, Tokenizer.from_file(model.tokenizer_path))
    card = model_card(model.history, config, parameters=parameters, vocab_size=rows, extra=extra)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "loss.png").write_bytes(loss_plot(model.history.metrics))


@contextmanager
def _nothing_published(model: Path) -> Iterator[None]:
    """Say of a PionError that nothing was published, and where the model is safe."""
    try:
        yield
    except PionError as error:
        raise PionError(
            f"Nothing was published: {error} The trained model is safe in {model}."
        ) from error
