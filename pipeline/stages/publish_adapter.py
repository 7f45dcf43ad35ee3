"""Publish LoRA's additions alone: a folder that peft and Pion load with the base that it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pion.errors import BadInput, PionError
from pipeline.job import Job
from pipeline.job.model_section import Base
from pipeline.models.find import HUB_REPO, found_in, locate_model
from pipeline.models.load import load_model
from pipeline.report.history import RunHistory
from pipeline.state.bases import BASES

if TYPE_CHECKING:
    from pion.adapter import Adapter
    from pion.exports.tokenizer_files import ModelTokenizer
    from pion.model.decoder import Decoder


def check_adapter(job: Job, *, to_hub: bool) -> None:
    """Raise BadInput, before training, for an adapter that nobody could use after it.

    These are adapters of models without a stock class in transformers and, on the Hub, of a base
    that exists only here.
    """
    from pion.exports.peft_folder import require_adaptable

    assert job.sft is not None
    lora, source = job.lora("sft"), job.sft.init_from or job.model.base
    assert lora is not None
    try:
        require_adaptable(job.model_config_resolved(), lora)
    except BadInput as error:
        raise BadInput(f"publish.adapter: {error}. Nothing was started.") from None
    if to_hub and not _is_on_hub(job, source):
        base = "the pretrained model of this run" if source is None else source
        raise BadInput(
            f"publish.adapter: the base of the adapter, {base}, exists only here, so an adapter on "
            "the Hub would be of no use. Nothing was started. Publish the merged model, or publish "
            "the base first and name its repository in model.from."
        )


def _is_on_hub(job: Job, source: str | None) -> bool:
    if source is None or job.input_path(source).exists():
        return False
    return bool(HUB_REPO.fullmatch(source.removeprefix("hf://"))) and isinstance(
        locate_model(source), str
    )


def _outside(job: Job, base: Base) -> tuple[str, str | None]:
    """Return what anybody calls the model that the run starts from, and its commit on the Hub."""
    if base.commit is not None:
        return base.source.removeprefix("hf://").partition("@")[0], base.commit
    return job.model_name(base.source), None


def write_adapter(
    history: RunHistory, model: Path, tokenizer: Path | ModelTokenizer, folder: Path
) -> tuple[Adapter, int]:
    """Write the adapter in the checkpoint folder `model` to the new `folder`, with its tokenizer.

    Return its record, in which the base has a name that is known outside the run, and the number of
    its parameters.
    """
    from pion.adapter import read_record
    from pion.config import ModelConfig
    from pion.exports.peft_folder import write_adapter_folder
    from pion.exports.tokenizer_files import write_tokenizer
    from pion.untrusted import parse_object, read_file
    from pion.weights import read_tensors

    record = read_record(model)
    assert record is not None
    if record.base.name.startswith("checkpoints/"):
        base = dataclasses.replace(record.base, name=f"{history.url}@pretrain")
        record = dataclasses.replace(record, base=base)
    elif history.job.base is not None and record.base.name.startswith(f"{BASES}/"):
        name, commit = _outside(history.job, history.job.base)
        base = dataclasses.replace(record.base, name=name, commit=commit)
        record = dataclasses.replace(record, base=base)
    config_file = model / "config.json"
    config = ModelConfig.from_dict(parse_object(read_file(config_file), str(config_file)))
    tensors = read_tensors(model / "model.safetensors")
    folder.mkdir(parents=True)
    write_adapter_folder(folder, config, record, tensors)
    write_tokenizer(folder, tokenizer, config.seq_len, chat=True)
    return record, sum(tensor.numel() for tensor in tensors.values())


def verify_adapter(folder: Path, trained: Decoder, tokenizer: Path, texts: Sequence[str]) -> float:
    """Load `folder` with its base, as `pion chat` does; compare its logits with those of `trained`.

    Return the greatest difference. A rented machine has no peft, so this is our own loader. Raises
    PionError if it does not load, or if logits differ by more than an export's may.
    """
    import torch

    from pion.data.tokenizer import Tokenizer
    from pion.verify import COMPARED_TOKENS, MAX_LOGIT_DIFFERENCE, SAFE

    try:
        loaded = load_model(found_in(folder))
    except BadInput as error:
        raise PionError(f"{folder}: Pion can't load the adapter again: {error}. {SAFE}") from error
    known, largest = Tokenizer.from_file(tokenizer), 0.0
    with torch.inference_mode():
        for text in texts:
            ids = known.encode(text)[: min(COMPARED_TOKENS, trained.config.seq_len)]
            if not ids:
                continue
            tokens = torch.tensor([ids])
            ours, theirs = (m(tokens)[..., : known.vocab_size] for m in (trained, loaded))
            worst = float((ours - theirs).abs().max())
            if not worst <= MAX_LOGIT_DIFFERENCE:  # not `>`: a NaN must not pass
                raise PionError(
                    f"{folder}: the adapter gives different logits than the trained model: they "
                    f"differ by {worst:.3g} (allowed: {MAX_LOGIT_DIFFERENCE:g}). {SAFE}"
                )
            largest = max(largest, worst)
    return largest
