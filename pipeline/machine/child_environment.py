"""The environment of the processes that Pion starts: no keys but those that a process uses."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pion.secret_names import names_secret
from pipeline.console.masking import holds_userinfo

# What begins the names of the variables that talk to S3 and to the Hub.
S3 = ("AWS_",)
HUB = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_")
# The same of a worker that trains: Ray's token, and what trackers of metrics need.
TRAINING = (*S3, *HUB, "RAY_", "WANDB_", "TRACKIO_")


def without_secrets(*uses: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment without the variables that hold secrets, by their names or because
    their values are URLs with a password. Variables that begin with one of `uses` stay.

    A process that talks to a service also keeps its proxies.
    """
    proxies = ("http_proxy", "https_proxy", "all_proxy") if uses else ()
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(uses) or name.lower() in proxies or not _is_secret(name, value)
    }


def of_store(url: str, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of a process that writes to the store at `url`."""
    uses = S3 if url.startswith("s3://") else HUB if url.startswith("hf://") else ()
    return without_secrets(*uses, environment=environment)


def _is_secret(name: str, value: str) -> bool:
    return name == "AWS_ACCESS_KEY_ID" or names_secret(name) or holds_userinfo(value)
