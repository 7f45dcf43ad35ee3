#!/usr/bin/env bash
# From a bare rented machine to `pion run`. Every YAML in this folder runs it as its `run:`:
# SkyPilot recovers a job whose `run:` exits with 75, but never one whose `setup:` fails, so all
# that a bad host can break happens here.
#
#   exit 75   this machine won't do, or was taken while booting: another one may
#   exit 2    no machine will do
#   else      the exit code of `pion run`
set -uo pipefail
trap 'exit 75' TERM
export PION_BOOT_STARTED=$(date +%s.%N)
cd "$(dirname "$0")/.."

# A test that crashes or hangs, as the driver of a broken GPU makes it, has failed: 124 is `timeout`'s
# word for a hang, and above 128 are signals.
leave_with() {
    [ "$1" -eq 124 ] || [ "$1" -gt 128 ] || exit "$1"
    echo "boot: the test of this machine crashed or hung ($1); leaving it with 75" >&2
    exit 75
}

# SkyPilot sets what the YAML leaves empty to ""; clients of S3 and the Hub take that for a value.
for name in ${!HF_*} ${!AWS_*} ${!PION_*} ${!WANDB_*}; do
    [ -n "${!name:-}" ] || unset "$name"
done
export AWS_DEFAULT_REGION=${AWS_DEFAULT_REGION:-us-east-1}

# A mistake of whoever launched this is the same on every machine.
[ -n "${JOB:-}" ] || { echo "boot: JOB is empty; launch with --env JOB=jobs/….yaml" >&2; exit 2; }
[ -f "$JOB" ] || {
    echo "boot: no $JOB in what was sent here; JOB is relative to the checkout, and what" \
        ".gitignore names is not sent" >&2
    exit 2
}

# Shell words, read without a shell: an override may hold spaces and quotes.
words=$(mktemp)
python3 -c '
import os, shlex, sys
try:
    print(end="".join(word + "\0" for word in shlex.split(os.environ.get("OVERRIDES", ""))))
except ValueError as error:
    sys.exit(f"boot: OVERRIDES is no list of shell words ({error}); nothing was started")' \
    >"$words" || exit 2
mapfile -d '' -t overrides <"$words"

# SkyPilot runs jobs in an empty environment of its own; the image's Python is behind it.
if [ -n "${VIRTUAL_ENV:-}" ]; then
    PATH=${PATH//"$VIRTUAL_ENV/bin:"/}
    unset VIRTUAL_ENV
fi
image_packages=$(python3 pipeline/rent/on_machine/boot_check.py) || leave_with $?
export PION_BOOT_CHECKED=$(date +%s.%N)

# Packages: those of a run and no others (no SkyPilot, no test tools), at the versions that
# pyproject.toml pins. `uv sync` looks at nothing outside its environment, so an image's torch is
# named to it as not to be installed, with all that torch brings, and is put on the path by a .pth
# file behind what is installed. (--system-site-packages would not do for an image whose Python is
# itself an environment: it would lead to the interpreter that one was made from.)
export PATH=$HOME/.local/bin:$PATH   # where SkyPilot has put uv
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh || exit 75
mentions() { grep -Eq "(^|[[:space:]{.])$1[:=.]" "$JOB" - <<<"${OVERRIDES:-}"; }
sync=(uv sync --no-default-groups)
mentions lm_eval && sync+=(--group evaluate)
mentions wandb && sync+=(--extra wandb)
mentions tensorboard && sync+=(--extra tensorboard)
if [ -n "$image_packages" ]; then
    [ -d .venv ] || uv venv --quiet --python "$(command -v python3)" || exit 75
    python=$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')
    echo "$image_packages" >"$python/image-torch.pth"
    pinned='s/^ *"\(torch\|triton\|nvidia-[a-z0-9-]*\|cuda-[a-z0-9-]*\)==.*/--no-install-package \1/p'
    sync+=($(sed -n "$pinned" pyproject.toml))
fi
if ! said=$("${sync[@]}" 2>&1); then
    printf '%s\n' "$said" >&2
    case $said in  # the first that is found: what uv says has the cause of a cause in it
        *"Failed to fetch"* | *"Failed to download"* | *"os error"*) ;;
        # On every machine alike: pins that can't be met, a package without a wheel, no Python.
        *"No solution found"* | *"Failed to parse"* | *"Failed to build"* | *"No interpreter"*) exit 2 ;;
    esac
    echo "boot: packages can't be installed here; leaving this machine with 75" >&2
    exit 75
fi
printf '%s\n' "${said##*$'\n'}"
export PION_BOOT_SYNCED=$(date +%s.%N)

if [ "${PION_EXPECT_GPUS:-${SKYPILOT_NUM_GPUS_PER_NODE:-0}}" != 0 ]; then
    timeout -k 10 180 .venv/bin/python -m pipeline.rent.on_machine.gpu_check || leave_with $?
fi

# In place of this shell, so that SIGTERM reaches it and its exit code is the job's.
[ "${SKYPILOT_NUM_NODES:-1}" = 1 ] || exec bash sky/ray_nodes.sh "$JOB" "${overrides[@]}"
exec .venv/bin/pion run "$JOB" "${overrides[@]}"
