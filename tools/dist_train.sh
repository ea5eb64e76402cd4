#!/usr/bin/env bash
# Train with one process per GPU (on a machine without GPUs: GPUS processes on the CPU, through gloo).
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several machines: the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
# Ends with status 75 if it was told to stop (SIGTERM, SIGUSR1) and has saved: --resume goes on.
set -euo pipefail
if (($# < 2)); then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
fail() {
    echo "error: $1" >&2
    exit 2
}
nodes=${NNODES:-1} node=${NODE_RANK:-0} port=${PORT:-29500}
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "GPUS=$gpus: a number of processes, 1 or more, is needed"
[[ $nodes =~ ^[1-9][0-9]*$ && $node =~ ^[0-9]+$ && $node -lt $nodes ]] ||
    fail "NODE_RANK=$node NNODES=$nodes: the nodes are numbered from 0 to NNODES - 1"
[[ $port =~ ^[0-9]+$ && $port -ge 1 && $port -le 65535 ]] || fail "PORT=$port: ports are 1 to 65535"

if [[ ${NNODES:-1} == 1 && -z ${PORT:-} ]]; then
    # torchrun takes a free port: several jobs share a machine.
    rendezvous=(--standalone)
else
    rendezvous=(--nnodes="$nodes" --node_rank="$node" --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$port")
fi

# torchrun ends with 1 whatever the status of its processes is: they write theirs to this file.
S6LA_STATUS_FILE=$(mktemp)
export S6LA_STATUS_FILE
trap 'rm -f "$S6LA_STATUS_FILE"' EXIT
python -m torch.distributed.run "${rendezvous[@]}" --nproc_per_node="$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@" &
torchrun=$!
# torchrun passes SIGTERM on; of SIGUSR1 it would die.
trap 'kill -TERM "$torchrun" 2>/dev/null || true' TERM USR1
status=0
wait "$torchrun" || status=$?
while kill -0 "$torchrun" 2>/dev/null; do # wait also returns when a signal comes
    status=0
    wait "$torchrun" || status=$?
done
if ((status != 0)) && [[ -s $S6LA_STATUS_FILE ]]; then
    status=$(<"$S6LA_STATUS_FILE")
fi
exit "$status"
