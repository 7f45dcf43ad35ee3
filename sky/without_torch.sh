#!/usr/bin/env bash
# Print the options with which `uv sync` installs everything except torch and what torch brings.
# Read by boot.sh and the Dockerfile, in the folder of pyproject.toml.
exec sed -n 's/^ *"\(torch\|triton\|nvidia-[a-z0-9-]*\|cuda-[a-z0-9-]*\)==.*/--no-install-package \1/p' \
    pyproject.toml
