"""Published models as the Hub lists them: real settings, with a tiny tokenizer and no weights.

`pion check` and `pion plan` read no weights, so a few bytes stand in for them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pion.formats.huggingface.architectures import config_from_transformers
from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.job.model_section import Base
from tests.paths import JOBS
from tests.support.chat_templates import CHATML, QWEN3
from tests.support.hub_server import HubServer
from tests.support.tokenizer_kinds import write_files

Fields = dict[str, Any]


def sizes(d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int) -> Fields:
    """Return the fields of a config.json that give the size of a model with a tied head."""
    return {
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "intermediate_size": d_ff,
        "tie_word_embeddings": True,
    }


# The fields of the published config.json files, in the spelling of these files.
SMOLLM2: Fields = {
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000,
    "rope_scaling": None,
    "rms_norm_eps": 1e-5,
}
QWEN: Fields = {
    "vocab_size": 151_936,
    "rope_theta": 1_000_000.0,
    "use_sliding_window": False,
    "rms_norm_eps": 1e-6,
}
QWEN_3: Fields = QWEN | {
    "max_position_embeddings": 40_960,
    "head_dim": 128,
    "sliding_window": None,
    "max_window_layers": 28,
    "attention_bias": False,
    "rope_scaling": None,
}
# By name: the class, the fields, and how many parameters the model has.
PUBLISHED: dict[str, tuple[str, Fields, int]] = {
    "SmolLM2-135M": ("Llama", sizes(576, 30, 9, 3, 1536) | SMOLLM2, 134_515_008),
    "SmolLM2-360M": ("Llama", sizes(960, 32, 15, 5, 2560) | SMOLLM2, 361_821_120),
    "Qwen2.5-0.5B": (
        "Qwen2",
        sizes(896, 24, 14, 2, 4864)
        | QWEN
        | {"max_position_embeddings": 32_768, "sliding_window": 32_768, "max_window_layers": 21},
        494_032_768,
    ),
    "Qwen3-0.6B": ("Qwen3", sizes(1024, 28, 16, 8, 3072) | QWEN_3, 596_049_920),
    "Qwen3-1.7B": ("Qwen3", sizes(2048, 28, 16, 8, 6144) | QWEN_3, 1_720_574_976),
}
# By repository: the published sizes, the kind of tokenizer, and its template.
REPOSITORIES: dict[str, tuple[str, str, str | None]] = {
    "HuggingFaceTB/SmolLM2-135M": ("SmolLM2-135M", "smollm2", None),
    "HuggingFaceTB/SmolLM2-360M": ("SmolLM2-360M", "smollm2", None),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("SmolLM2-360M", "smollm2", CHATML),
    "Qwen/Qwen3-0.6B": ("Qwen3-0.6B", "qwen", QWEN3),
}
# What else these files say, and no shape follows from.
OTHERS: Fields = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "is_llama_config": True,
    "pretraining_tp": 1,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
}


def config_of(repo: str) -> Fields:
    """Return the config.json of a repository."""
    kind, fields, _ = PUBLISHED[REPOSITORIES[repo][0]]
    named = {"architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower()}
    return OTHERS | fields | named


def write_published(folder: Path, name: str) -> Path:
    """Write the settings of a published model into a new folder, with a tiny tokenizer.

    The weights are a placeholder: a job that starts from the folder can be planned and checked, but
    not run.
    """
    import torch
    from safetensors.torch import save_file

    from tests.support.finished_run import tiny_tokenizer

    kind, fields, _ = PUBLISHED[name]
    settings = fields | {"architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    tiny_tokenizer().save(folder / "tokenizer.json")
    save_file({"placeholder": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def publish(hub: HubServer, repo: str, folder: Path) -> str:
    """Put a repository without weights on the Hub, and return its commit. `folder` is scratch."""
    _, kind, template = REPOSITORIES[repo]
    write_files(kind, folder, template)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["config.json"] = json.dumps(config_of(repo), indent=2).encode()
    files["model.safetensors"] = f"the weights of {repo}".encode()
    files["README.md"] = b"---\nlicense: apache-2.0\n---\n"
    return hub.add_repo(repo, "model", files)


def publish_tiny(hub: HubServer, repo: str, folder: Path) -> str:
    """Put a tiny model of SmolLM2's shape on the Hub under this name, which a run can train."""
    from tests.support.stock_models import saved, stock_model

    _, kind, template = REPOSITORIES[repo]
    saved(stock_model("SmolLM2", vocab_size=384), folder)
    write_files(kind, folder, template)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return hub.add_repo(repo, "model", {path.name: path.read_bytes() for path in folder.iterdir()})


def base_of(values: dict[str, Any]) -> Base:
    """Return the model that the values of a job start from, without a Hub or a run of the demo."""
    source = values["model"]["from"]
    hashes = [hashlib.sha256(f"{part} of {source}".encode()).hexdigest() for part in "mt"]
    if source not in REPOSITORIES:
        demo = load_job(JOBS / "demo.yaml").model_config_resolved()
        return Base(source, *hashes, config=demo.to_dict())
    config = config_from_transformers(config_of(source))
    template = REPOSITORIES[source][2]
    return Base(
        source,
        *hashes,
        config=config.to_dict(),
        commit="0" * 40,
        template=template and hashlib.sha256(template.encode()).hexdigest(),
    )


def load_shipped(path: Path, overrides: tuple[str, ...] | list[str] = ()) -> Job:
    """Return the job of a file that comes with Pion, also if it starts from a model on the Hub."""
    return load_job(path, overrides, base_of)
