#!/usr/bin/env bash
# Train through slurm.
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [options of tools/train.py]
# Environment: GPUS (8 in all), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS (more options for srun).
# A training that slurm told to stop saves and ends with status 75. In a batch job the job is then requeued, else srun starts
# again, up to REQUEUES (10) times, REQUEUE_PAUSE (10) seconds later; both go on with --resume. REQUEUES=0: neither.
set -euo pipefail
if (($# < 3)); then
    echo "usage: $0 PARTITION JOB_NAME CONFIG [WORK_DIR] [options of tools/train.py]" >&2
    exit 2
fi
partition=$1 job_name=$2 config=$3
shift 3
work_dir=()
if (($# > 0)) && [[ $1 != -* ]]; then
    work_dir=(--work-dir "$1")
    shift
fi
gpus=${GPUS:-8}
# A job smaller than a node asks for no more than it uses.
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
read -r -a srun_args <<<"${SRUN_ARGS:-}"
preempted=75 # PREEMPTED_STATUS of s6la_mm.engine
requeues=${REQUEUES:-10}
resume=()
if ((${SLURM_RESTART_COUNT:-0} > 0)); then
    resume=(--resume)
fi
trap : TERM USR1 # meant for the training, to which srun passes them; its status decides

for ((start = 0; ; start++)); do
    status=0
    set -x
    # --resume last: after a stop the newest checkpoint counts, not one that the command line names.
    srun -p "$partition" --job-name="$job_name" --gres=gpu:"$gpus_per_node" --ntasks="$gpus" \
        --ntasks-per-node="$gpus_per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
        ${srun_args[@]+"${srun_args[@]}"} \
        python -u "$(dirname "$0")/train.py" "$config" ${work_dir[@]+"${work_dir[@]}"} --launcher slurm "$@" \
        ${resume[@]+"${resume[@]}"} || status=$?
    { set +x; } 2>/dev/null
    if ((status != preempted || start >= requeues)); then
        exit "$status"
    fi
    if [[ -n ${SLURM_JOB_ID:-} ]]; then
        scontrol requeue "$SLURM_JOB_ID"
        exit "$status"
    fi
    echo "preempted: starting again in ${REQUEUE_PAUSE:-10} s" >&2
    sleep "${REQUEUE_PAUSE:-10}"
    resume=(--resume)
done
