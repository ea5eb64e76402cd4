#!/usr/bin/env bash
# Train with one process per GPU (on a machine without GPUs: GPUS processes on the CPU, through gloo).
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# Several machines: the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT set.
set -euo pipefail
if (($# < 2)); then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2

if [[ ${NNODES:-1} == 1 && -z ${PORT:-} ]]; then
    # torchrun takes a free port: several jobs share a machine.
    rendezvous=(--standalone)
else
    rendezvous=(--nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}"
        --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")
fi
exec python -m torch.distributed.run "${rendezvous[@]}" --nproc_per_node="$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
