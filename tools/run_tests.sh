#!/usr/bin/env bash
# Sets up the environment and runs the tests on every core.
#   tools/run_tests.sh [--all] [options of pytest, such as -k resume, or -n 0 for one process]
# Without --all the tests marked nightly are left out: they take minutes each (two nodes, signals to what torchrun has
# started, steps of longer schedules, the CUDA kernels in emulation), and the default tier has a smaller case of the same.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

tier=()
for argument; do
    shift
    case $argument in
        --all) tier=(-m '') ;; # in place of pyproject.toml's -m 'not nightly'
        *) set -- "$@" "$argument" ;;
    esac
done
cd "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # this clone's code, even where clones share the environment
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}        # the tensors are small: more threads only wait for each other
exec "$venv/bin/python" -m pytest -n auto --maxprocesses 8 --dist worksteal ${tier[@]+"${tier[@]}"} "$@"
