#!/usr/bin/env bash
# Start one Ray on all nodes, and `pion run` on the first. With several nodes, sky/boot.sh ends here.
#
# SkyPilot sets SKYPILOT_NODE_IPS (one per line), SKYPILOT_NODE_RANK, SKYPILOT_NUM_NODES and
# SKYPILOT_NUM_GPUS_PER_NODE. The arguments are those of `pion run`.
# SkyPilot runs its own Ray on these machines, on port 6380. Never use `ray stop`: it ends every Ray.
set -uo pipefail
trap 'exit 75' TERM

pion=$(cd "$(dirname "$0")/.." && pwd)
head_ip=${SKYPILOT_NODE_IPS%%$'\n'*}
my_ip=$(sed -n "$((SKYPILOT_NODE_RANK + 1))p" <<<"$SKYPILOT_NODE_IPS")
port=${PION_RAY_PORT:-6399}
gpus=${SKYPILOT_NUM_GPUS_PER_NODE:-0}
workers_here=$((gpus > 0 ? gpus : 1))
# `prepare` uses all cores. Of machines without GPUs that train, each has one worker, so one CPU:
# `pion run` prepares on these CPUs before it starts the workers (pipeline/run/advance.py).
cpus=$workers_here
if [ "$gpus" -gt 0 ] || [ "${PION_UNTIL:-}" = prepare ]; then
    cpus=$(($(nproc) > workers_here ? $(nproc) : workers_here))
fi
address=$head_ip:$port

. "$(dirname "$0")/ray_token.sh"
# The same settings as in pipeline/workers/ray_fit.py.
export RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 RAY_TRAIN_METRICS_ENABLED=0
export RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=300 RAY_worker_niceness=0
export PION_RAY_ADDRESS=$address
unset RAY_ADDRESS

# Every process started from here on has the session's name in its environment. When this process
# ends for any reason, the pipe closes, and the reaper ends all of them.
# Ray opens its own folder to everybody, so this folder is in one that only this user can enter.
export PION_RAY_SESSION=$(mktemp -d /tmp/pion-ray-XXXXXX)
reaper=$pion/pipeline/workers/reaper.py
exec 9> >(exec "$pion/.venv/bin/python" -S -I "$reaper" "$PION_RAY_SESSION")

start_node() {
    "$pion/.venv/bin/ray" start "$@" --node-ip-address="$my_ip" --num-cpus="$cpus" \
        --num-gpus="$gpus" --dashboard-agent-listen-port=0 --disable-usage-stats \
        --temp-dir="$PION_RAY_SESSION/r" --log-style=record 9>&- >"$PION_RAY_SESSION/start.log" 2>&1
}
head_answers() { (exec 3<>"/dev/tcp/$head_ip/$port") 2>/dev/null; }

if [ "$SKYPILOT_NODE_RANK" = 0 ]; then
    # Ray's monitor is for autoscaling. Its port would answer everybody, without a token.
    start_node --head --port="$port" --include-dashboard=false --no-monitor || {
        cat "$PION_RAY_SESSION/start.log" >&2
        exit 75
    }
    echo "ray: $SKYPILOT_NUM_NODES nodes of $workers_here workers meet at $address"
    # `exec` keeps the pipe open. Ray Train waits for workers on nodes that are not up yet.
    workers=$((SKYPILOT_NUM_NODES * workers_here))
    exec "$pion/.venv/bin/pion" run "$1" "hardware.workers=$workers" "${@:2}"
fi

# This node's exit code decides nothing. It is 0 when the head is gone, done or not: SkyPilot looks
# at the head's exit code, or notices its loss.
deadline=$((SECONDS + 900))
until head_answers; do
    [ $SECONDS -lt $deadline ] || {
        echo "ray: the first node, $address, did not answer for 15 minutes" >&2
        exit 75
    }
    sleep 1
done
while head_answers; do
    start_node --address="$address" --block || {
        tail -n 1 "$PION_RAY_SESSION/start.log" >&2
        sleep 2
    }
done
echo "ray: the first node is gone; this one is done"
