"""Ask RunPod what the pod of this process costs. SkyPilot's price list may be out of date."""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pipeline.machine.rented import PROC, with_providers

# RunPod's own library reads this variable, too.
_API_VARIABLE, _API = "RUNPOD_API_BASE_URL", "https://api.runpod.io"
# A start of a run waits for each key at most this long.
_SECONDS = 5.0
_MOST_BYTES = 65536


def pod_price(environment: Mapping[str, str]) -> float | None:
    """Return what this pod costs in dollars per hour; None if RunPod can't be asked.

    RunPod gives each pod a key of its own. If that key may not ask, the key that SkyPilot copies to
    the machines it rents is used, if there is one.
    """
    told = with_providers(environment, PROC)
    pod = told.get("RUNPOD_POD_ID", "")
    # RunPod rents single machines, so there is no price for several.
    if re.fullmatch(r"[\w-]+", pod) is None or told.get("SKYPILOT_NUM_NODES", "1") != "1":
        return None
    api = told.get(_API_VARIABLE) or _API
    return next((p for key in _keys(told) if (p := _ask(api, key, pod)) is not None), None)


def _keys(environment: Mapping[str, str]) -> Iterator[str]:
    if key := environment.get("RUNPOD_API_KEY"):
        yield key
    with contextlib.suppress(OSError, RuntimeError, ValueError, LookupError, TypeError):
        file = Path(environment.get("HOME") or "~", ".runpod", "config.toml").expanduser()
        key = tomllib.loads(file.read_text())["default"]["api_key"]
        if isinstance(key, str):
            yield key


def _ask(api: str, key: str, pod: str) -> float | None:
    query = {"query": f'query {{ pod(input: {{podId: "{pod}"}}) {{ costPerHr }} }}'}
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "User-Agent": "pion",
    }
    try:
        request = urllib.request.Request(f"{api}/graphql", json.dumps(query).encode(), headers)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_SECONDS) as answer:
            price = json.loads(answer.read(_MOST_BYTES))["data"]["pod"]["costPerHr"]
    except (OSError, HTTPException, ValueError, LookupError, TypeError):
        return None
    known = isinstance(price, int | float) and not isinstance(price, bool) and 0 < price < 1e6
    return float(price) if known else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keeps the key from being sent to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None
