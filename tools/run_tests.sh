#!/usr/bin/env bash
# Sets up the environment and runs the tests, a file at a time on every core. Extra arguments go to pytest, for example
# -m "not slow", or -n 0 for one process.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

cd "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # this clone's code, even where clones share the environment
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}        # the tensors are small: more threads only wait for each other
exec "$venv/bin/python" -m pytest -n auto --maxprocesses 8 --dist loadfile "$@"
