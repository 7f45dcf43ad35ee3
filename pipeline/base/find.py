"""From what a job calls a model to start from (`model.from`) to its files and its content's hash.

Of a Hub repository, only small files are read for that, settings and tokenizer: the Hub has the
hashes of weights. Those of a folder or a run are computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from pion.config.lora import PEFT_CONFIG, PEFT_TENSORS
from pion.config.model_config import ModelConfig
from pion.data.chat.template_source import ASKS_FOR_DATE, TEMPLATE_FILE, template_of
from pion.data.tokens.special_tokens import GENERATION_CONFIG, read_special_tokens
from pion.data.tokens.token_names import TOKENIZER_CONFIG
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput, PionError, told
from pion.files import expand, private_cache_folder, sha256_file
from pion.formats.weights import INDEX, WEIGHTS, is_legal, shards_of
from pion.later_fields import shown
from pion.untrusted import LARGEST_TOKENIZER, parse_object, read_file
from pipeline.data.hub import OnHub, explained, pin
from pipeline.data.tokenizer import needed_files
from pipeline.job.model_section import Base
from pipeline.models.bring import bring_model
from pipeline.models.find import CONFIG, FoundModel, Listed, find_model, locate_model
from pipeline.state.shared.bases import DECIDE_IDS, decides_results, hash_of
from pipeline.state.workspace import Files


def read_config(path: Path) -> ModelConfig:
    """Return the settings in a config.json, ours or transformers'.

    Raises BadInput for an architecture or a setting that Pion does not have, for weights that are
    quantized or packed, for a model that is no language model, and for code of its own.
    """
    from pion.formats.huggingface.architectures import config_from_transformers

    settings = parse_object(read_file(path), CONFIG)
    if "model_type" not in settings:
        return ModelConfig.from_dict(settings)
    code = _code(settings)
    try:
        config = config_from_transformers(settings)
    except BadInput as error:
        also = f". The model also needs code of its own ({code}), which Pion never runs"
        raise BadInput(f"{error}{also if code else ''}") from None
    if config.packed:
        raise BadInput(
            "its ternary weights are packed, so it is no model to start from. Start from a "
            "checkpoint of the run that trained it (runs/NAME@pretrain)"
        )
    _require_stock(settings, code)
    return config


def _require_stock(settings: Mapping[str, Any], code: str | None) -> None:
    """Raise BadInput for a model whose weights are not those of its architecture."""
    from pion.formats.huggingface.architectures import architecture_named, is_wrapper

    architecture = architecture_named(settings)
    # Phi-3's repositories name a copy of transformers' class, which transformers does not run.
    copied = code is not None and code.endswith(f".{architecture.name}'")
    if code is not None and architecture.stock and not copied:
        raise BadInput(
            f"config.json: auto_map names code of its own ({code}), which Pion never runs. Without "
            f"it, the model may be another one than {architecture.name}"
        )
    named = None if is_wrapper(settings) else settings.get("architectures")
    if named is not None and (not isinstance(named, list) or architecture.name not in named):
        raise BadInput(
            f"config.json: architectures is {shown(named)}; only {architecture.name} is a language "
            "model that Pion can train"
        )


def _code(settings: Mapping[str, Any]) -> str | None:
    """Return the model's own code that transformers would run; None if there is none."""
    named = settings.get("auto_map")
    if not isinstance(named, dict):
        return None
    kinds = ("AutoModelForCausalLM", "AutoModel")
    return next((shown(named[kind]) for kind in kinds if kind in named), None)


TOKENIZER = "tokenizer.json"
# Settings, tokenizer and template; and what the model card needs: licence and conditions.
KEPT = (
    *DECIDE_IDS,
    CONFIG,
    GENERATION_CONFIG,
    TEMPLATE_FILE,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "README.md",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Models that were made whole, below the cache folder, by the hashes of their content.
CONVERTED = "converted"


@dataclass(frozen=True)
class FoundBase:
    """A model to start from, where it was found.

    Attributes:
        base: what it is.
        files: its files, by name: bytes and sha256.
        bring: returns where a file is on this machine; downloads it if need be.
    """

    base: Base
    files: Files
    bring: Callable[[str], Path]


def find_base(source: str, folder: Path) -> FoundBase:
    """Return the model that a job in `folder` calls `source`.

    Raises BadInput if there is none, or none that Pion can train, and StoreError or PionError if
    the place that would have it does not answer.
    """
    from pion.formats.load import load_lazily

    if not source.strip():
        raise BadInput("it is empty: name a Hub repository, a folder or a run")
    try:
        path = (folder / expand(source)).resolve()
        found = locate_model(str(path) if path.exists() else source)
    except (OSError, ValueError):  # no file can have this name
        found = locate_model(source)
    commit: str | None = None
    if isinstance(found, str):
        files, bring, commit = _of_hub(found)
    else:
        if isinstance(found, Listed):  # of a remote store: it is needed in any case
            found = bring_model(found.state, found.head, found.entry.key)
        files, bring = _of_model(find_model(str(found)))
    base = _described(source, files, bring, commit)
    if commit is None:
        load_lazily(bring(CONFIG).parent)  # raises BadInput for weights that do not fit
    return FoundBase(base, files, bring)


def _described(source: str, files: Files, bring: Callable[[str], Path], commit: str | None) -> Base:
    """Return what a model is, once its settings and its tokenizer can be used."""
    missing = [name for name in (CONFIG, TOKENIZER) if name not in files]
    if missing:
        raise BadInput(
            f"{source} has no {missing[0]}. A model to start from needs its settings "
            "(config.json), its weights (safetensors) and its tokenizer (tokenizer.json)"
        )
    with told(f"{source}: "):
        config = read_config(bring(CONFIG))
        tokenizer = Tokenizer.from_file(bring(TOKENIZER), where=TOKENIZER)
        tokenizer.fits(config.vocab_size, where=TOKENIZER)
        named = (TEMPLATE_FILE, TOKENIZER_CONFIG, GENERATION_CONFIG)
        settings = [bring(name) if name in files else None for name in named]
        template = template_of(*settings[:2])
        folder = bring(TOKENIZER).parent
        special = read_special_tokens(folder, tokenizer, tokenizer.end_of_text)
    deciding = {name: about for name, about in files.items() if decides_results(name)}
    of_ids = {name: about for name, about in deciding.items() if name in DECIDE_IDS}
    return Base(
        source=source,
        hash=hash_of(deciding),
        tokenizer=hash_of(of_ids),
        config=config.to_dict(),
        commit=commit,
        template=None if template is None else sha256(template.encode()).hexdigest(),
        date=datetime.now(UTC).date().isoformat() if ASKS_FOR_DATE in (template or "") else None,
        note=special.note,
    )


# ---------------------------------------------------------------- folders and runs


def _of_model(found: FoundModel) -> tuple[Files, Callable[[str], Path]]:
    """Return the files of a model on this machine."""
    if found.kind == "seed" or found.base is not None:
        found = find_model(str(_converted(found)))
    paths = {path.name: path for path in sorted(found.folder.iterdir()) if path.is_file()}
    names = _wanted(list(paths), str(found.folder), paths.__getitem__)
    kept = {name: paths[name] for name in names}
    if found.tokenizer is not None:
        kept[TOKENIZER] = found.tokenizer
    try:
        files = {name: (path.stat().st_size, sha256_file(path)) for name, path in kept.items()}
    except OSError as error:
        raise BadInput(f"{found.folder} can't be read: {error.strerror or error}") from None
    return files, kept.__getitem__


def _converted(found: FoundModel) -> Path:
    """Return a folder with a whole model: of a seed's .pt file, of an adapter with its base, or of
    a checkpoint in parts.

    So nothing pickled goes into a store, and a start never depends on another model.
    """
    from pion.formats.weights import write_safetensors
    from pion.model.parameters import tensors_sha256
    from pipeline.models.load import load_model

    if found.tokenizer is None:
        raise BadInput(
            f"{found.folder} has no tokenizer next to it. Make a folder of both, and start from "
            f"it: pion import-seed {found.folder} DIR --tokenizer FILE"
        )
    try:
        model = load_model(found)
    except BadInput as error:
        if found.base is None:
            raise
        words = str(error).removeprefix(f"{found.folder}: ")
        raise BadInput(
            f"{found.label} is an adapter, and can't be merged with its base {found.base.label}: "
            f"{words}"
        ) from None
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    tokenizer = {TOKENIZER: read_file(found.tokenizer, LARGEST_TOKENIZER)}
    if found.kind != "seed":  # an adapter or a checkpoint keeps its chat template
        tokenizer |= needed_files(found.tokenizer.parent)
    content = sha256(b"".join(sha256(data).digest() for data in tokenizer.values())).hexdigest()
    folder = private_cache_folder(CONVERTED) / f"{tensors_sha256(state)}-{content}"
    if not (folder / CONFIG).is_file():
        folder.mkdir(exist_ok=True)
        write_safetensors(folder / WEIGHTS, state)
        for name, data in tokenizer.items():
            (folder / name).write_bytes(data)
        (folder / CONFIG).write_text(json.dumps(model.config.to_dict()) + "\n", encoding="utf-8")
    return folder


def _wanted(names: list[str], where: str, read: Callable[[str], Path]) -> list[str]:
    """Return the names of the files to keep. Raises BadInput if there are no safetensors."""
    kept = [n for n in names if n in KEPT or is_legal(n)]
    if WEIGHTS in names:
        return [*kept, WEIGHTS]
    if INDEX in names:
        shards = set(shards_of(read(INDEX)).values())
        missing = sorted(shards - set(names))
        if missing:
            raise BadInput(f"{where} has {INDEX}, but not its file {missing[0]}")
        return [*kept, INDEX, *sorted(shards)]
    pickled = next((name for name in names if name.endswith(PICKLES)), None)
    if pickled is not None:
        raise BadInput(
            f"{where} has its weights only as {pickled}, a pickle, which can run code when it is "
            'read. Convert it on a machine that you trust: python -c "from transformers import '
            "AutoModelForCausalLM as M; M.from_pretrained('MODEL').save_pretrained('FOLDER')\", "
            "copy its tokenizer files there, and start from FOLDER"
        )
    gguf = next((name for name in names if name.endswith(".gguf")), None)
    if gguf is not None:
        raise BadInput(
            f"{where} has its weights only as {gguf}, a format to run a model and not to train it. "
            "Start from the model that it was made from: its page names it"
        )
    raise BadInput(f"{where} has no {WEIGHTS}, so it is no model to start from")


# ---------------------------------------------------------------- the Hub


def _of_hub(text: str) -> tuple[Files, Callable[[str], Path], str]:
    """Return the files of a Hub repository at one commit, and the commit. If the Hub is away, they
    are those in its cache, if it has the model."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.hf_api import RepoFile

    repo, _, revision = text.partition("@")
    try:
        commit = pin(repo, revision or None, "model")
    except BadInput:
        raise
    except PionError as away:
        with suppress(BadInput):
            found = find_model(text)
            return *_of_model(found), str(found.commit)
        raise away from None

    def bring(name: str) -> Path:
        # A tokenizer is read together with the files next to it.
        for other in DECIDE_IDS if name in DECIDE_IDS else ():
            if other in entries:
                fetch(other)
        return fetch(name)

    def fetch(name: str) -> Path:
        with explained(OnHub(repo, commit, "model", name)):
            return Path(hf_hub_download(repo, name, revision=commit))

    with explained(OnHub(repo, commit, "model")):
        tree = list(HfApi().list_repo_tree(repo, revision=commit))
    entries = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    if PEFT_CONFIG in entries and PEFT_TENSORS not in entries:
        raise BadInput(
            f"Hub model {repo} at {commit[:12]} is an adapter without {PEFT_TENSORS}, and pickles "
            "are not read. Load it with peft on a machine that you trust, save it there "
            "(save_pretrained), and start from that folder"
        )
    if PEFT_CONFIG in entries:
        return *_of_model(find_model(f"{repo}@{commit}")), commit
    files = {}
    for name in _wanted(list(entries), f"Hub model {repo} at {commit[:12]}", bring):
        entry = entries[name]
        files[name] = (entry.size, entry.lfs.sha256 if entry.lfs else sha256_file(bring(name)))
    return files, bring, commit
