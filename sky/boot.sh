#!/usr/bin/env bash
# From a bare rented machine to `pion run`, or to the `pion try …` that
# PION_COMMAND names. Every YAML in this folder has this script as its `run:`.
# SkyPilot recovers a job whose `run:` exits with 75, but never a job whose `setup:` fails. So
# everything that a bad host can break happens here.
#
#   exit 75   this machine won't do, or was taken while booting; another machine may be fine
#   exit 2    this would fail on every machine
#   else      the exit code of `pion run`
set -uo pipefail
trap 'exit 75' TERM
export PION_BOOT_STARTED=$(date +%s.%N)
# The job's paths begin in the folder that was copied here. Pion is that folder, or next to it.
folder=$PWD
pion=$(cd "$(dirname "$0")/.." && pwd)
# An installed Pion sends itself as a wheel. Unpacked, it has what boots and is run from a checkout.
wheel=$(echo "$pion"/pion_lm-*.whl)
if [ -f "$wheel" ]; then
    python3 -m zipfile -e "$wheel" "$pion" && cp -r "$pion/pipeline/package_data/." "$pion" ||
        exit 75
fi

# A test that crashes or hangs has failed: the driver of a broken GPU does that. Code 124 is a hang
# (from `timeout`), and codes above 128 are signals.
leave_with() {
    [ "$1" -eq 124 ] || [ "$1" -gt 128 ] || exit "$1"
    echo "boot: the test of this machine crashed or hung (exit code $1); exiting with 75" >&2
    exit 75
}

# SkyPilot sets variables that the YAML leaves empty to "". Clients of S3 and the Hub would use "".
for name in ${!HF_*} ${!AWS_*} ${!PION_*} ${!WANDB_*} ${!TRACKIO_*}; do
    [ -n "${!name:-}" ] || unset "$name"
done
export AWS_DEFAULT_REGION=${AWS_DEFAULT_REGION:-us-east-1}
# Some images set this. Each process would then compile torch again, which takes seconds.
unset PYTHONDONTWRITEBYTECODE

# A mistake in the launch is the same on every machine.
[ -n "${JOB:-}" ] || { echo "boot: JOB is empty; launch with --env JOB=jobs/….yaml" >&2; exit 2; }
for job in "$JOB" "$JOB.yaml" "$pion/jobs/$(basename "$JOB" .yaml).yaml" ""; do
    [ ! -f "$job" ] || break
done
[ -n "$job" ] || {
    echo "boot: $JOB was not copied here; JOB is relative to the folder that is copied, and files" \
        "that .gitignore names are not copied" >&2
    exit 2
}
job=$(realpath "$job")

[ "${SKYPILOT_NUM_NODES:-1}" = 1 ] || . "$pion/sky/ray_token.sh"

# Split into shell words without running a shell: an override may contain spaces and quotes.
words=$(mktemp)
words_of() {
    python3 -c '
import os, shlex, sys
name = sys.argv[1]
try:
    print(end="".join(word + "\0" for word in shlex.split(os.environ.get(name, ""))))
except ValueError as error:
    sys.exit(f"boot: {name} is not a list of shell words ({error}); nothing was started")' \
        "$1" >"$words" || exit 2
}
words_of OVERRIDES
mapfile -d '' -t overrides <"$words"
words_of PION_COMMAND
mapfile -d '' -t command <"$words"
[ ${#command[@]} -gt 0 ] || command=(run)
if [ "${SKYPILOT_NUM_NODES:-1}" != 1 ] && [ "${command[0]}" != run ]; then
    echo "boot: PION_COMMAND=${command[0]} works on one machine; launch without num_nodes" >&2
    exit 2
fi

# SkyPilot runs jobs in its own empty virtual environment. Without it, `python3` is the image's.
if [ -n "${VIRTUAL_ENV:-}" ]; then
    PATH=${PATH//"$VIRTUAL_ENV/bin:"/}
    unset VIRTUAL_ENV
fi
cd "$pion"
# Several nodes need the same torch, whatever their drivers run.
any_build=--any-build
[ "${SKYPILOT_NUM_NODES:-1}" = 1 ] || any_build=
torch=$(python3 pipeline/rent/on_machine/boot_check.py $any_build) || leave_with $?
# The folder of the image's packages if its torch is used, or a build that this driver runs.
{ read -r image_packages; read -r build backend; } <<<"$torch"
export PION_BOOT_CHECKED=$(date +%s.%N)

# Install only the packages of a run (no SkyPilot, no test tools), at the versions that
# pyproject.toml pins. If another torch than the pinned one is used, uv is told not to install torch
# and its dependencies.
#
# `uv sync` does not see packages outside its environment. So if the image's torch is used, a .pth
# file puts the image's packages on the path, after the installed ones. (--system-site-packages would
# fail for an image whose Python is a virtual environment: it would find the interpreter below it.)
export PATH=$HOME/.local/bin:$PATH   # where SkyPilot has put uv
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh || exit 75
mentions() { grep -Eq "(^|[[:space:]{.])$1[:=.]" "$job" - <<<"${OVERRIDES:-}"; }
sync=(uv sync --no-default-groups)
mentions lm_eval && sync+=(--extra evaluate)
mentions wandb && sync+=(--extra wandb)
mentions tensorboard && sync+=(--extra tensorboard)
mentions trackio && sync+=(--extra trackio)
[ -z "$image_packages$build" ] || sync+=($(bash sky/without_torch.sh))
[ ! -f "$wheel" ] || sync+=(--no-install-project)
# Keep the build that an earlier start on this machine installed.
[ -z "$build" ] || sync+=(--inexact)
if [ -n "$image_packages" ]; then
    [ -d .venv ] || uv venv --quiet --python "$(command -v python3)" || exit 75
    python=$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')
    echo "$image_packages" >"$python/image-torch.pth"
fi
if ! said=$("${sync[@]}" 2>&1); then
    printf '%s\n' "$said" >&2
    case $said in  # the first match counts: uv's message has nested causes
        *"Failed to fetch"* | *"Failed to download"* | *"os error"*) ;;
        # The same on every machine: pins that can't be met, a package without a wheel, no Python.
        *"No solution found"* | *"Failed to parse"* | *"Failed to build"* | *"No interpreter"*) exit 2 ;;
    esac
    echo "boot: packages can't be installed on this machine; exiting with 75" >&2
    exit 75
fi
printf '%s\n' "${said##*$'\n'}"
# --no-config, because pyproject.toml allows only the pinned torch.
if [ -n "$build" ] && ! uv pip install --quiet --no-config --python .venv/bin/python \
    --torch-backend "$backend" "$build"; then
    echo "boot: this machine's driver needs $build ($backend), and this build can't be installed" \
        "here; exiting with 75" >&2
    exit 75
fi
if [ -f "$wheel" ] &&
    ! uv pip install --quiet --no-deps --reinstall --python .venv/bin/python "$wheel"; then
    echo "boot: ${wheel##*/} can't be installed on this machine; exiting with 75" >&2
    exit 75
fi
export PION_BOOT_SYNCED=$(date +%s.%N)

if [ "${PION_EXPECT_GPUS:-${SKYPILOT_NUM_GPUS_PER_NODE:-0}}" != 0 ]; then
    timeout -k 10 180 .venv/bin/python -m pipeline.rent.on_machine.gpu_check || leave_with $?
fi

cd "$folder"
arguments=("$JOB" "${overrides[@]}" ${PION_UNTIL:+--until "$PION_UNTIL"})
# `exec` replaces this shell, so that SIGTERM reaches pion, and pion's exit code is the job's.
[ "${SKYPILOT_NUM_NODES:-1}" = 1 ] || exec bash "$pion/sky/ray_nodes.sh" "${arguments[@]}"
exec "$pion/.venv/bin/pion" "${command[@]}" "${arguments[@]}"
