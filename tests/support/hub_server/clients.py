"""What Hub clients read from the environment when they are imported."""

import sys
from pathlib import Path

# The variables for which `read_at_import` stands, and the token, which is read at each call.
VARIABLES = frozenset(
    {
        "HF_ENDPOINT",
        "HF_HOME",
        "HF_HUB_DISABLE_XET",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_TOKEN",
    }
)


def read_at_import(environment):
    """Yield what a client imported with this `environment` would have: module, name and value.

    The environment is that of a HubServer.
    """
    import huggingface_hub.constants as constants

    url, home = environment["HF_ENDPOINT"], Path(environment["HF_HOME"])
    yield constants, "ENDPOINT", url
    yield constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    yield constants, "HF_HUB_DISABLE_XET", True
    yield constants, "HF_HUB_DISABLE_TELEMETRY", True
    yield constants, "HF_HOME", str(home)
    yield constants, "HF_HUB_CACHE", str(home / "hub")
    yield constants, "HF_TOKEN_PATH", str(home / "token")
    if "datasets" in sys.modules:
        import datasets.config

        yield datasets.config, "HF_ENDPOINT", url
        yield datasets.config, "HF_DATASETS_CACHE", home / "datasets"
        yield datasets.config, "HF_MODULES_CACHE", str(home / "modules")
