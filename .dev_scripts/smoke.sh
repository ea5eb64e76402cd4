#!/usr/bin/env bash
# Runs the tests marked smoke on a stack of docs/environments.md, with the op compiled there: a minute of what
# test_matrix.sh runs. The op stays beside the environment, under the hash of what it is made from.
#   .dev_scripts/smoke.sh A|B|C|D [pytest's arguments]
#   stack_env.sh makes the environments, and says which variables it reads
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stack_env.sh"
shift
work=$(mktemp -d "$venv/tmp-smoke.XXXXXX")
trap 'rm -rf "$work"' EXIT

op=$venv/op-$( (find s6la_mm/ops/csrc -type f -print0 | sort -z | xargs -0 cat setup.py build_ops.py) | sha256sum |
    cut -c 1-12)
if [ ! -e "$op" ]; then
    say 'compiling the op'
    if ! PATH=$venv/bin:$PATH S6LA_WITH_OPS=1 S6LA_WITH_CUDA=0 "$venv/bin/python" setup.py build_ext \
        --build-temp "$work/temp" --build-lib "$work/op" >"$work/build.log" 2>&1; then
        tail -n 30 "$work/build.log" >&2
        say 'error: the op does not compile; the last lines are above' >&2
        exit 1
    fi
    mv -T "$work/op" "$op" 2>/dev/null || [ -e "$op" ] # another run may have been first
fi

copy_files "$work/clone"
cp "$op"/s6la_mm/_ext*.so "$work/clone/s6la_mm/"
cd "$work/clone"
export PYTHONPATH=$PWD OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} S6LA_REQUIRE_OPS=1
"$venv/bin/python" -m pytest -n auto --maxprocesses 8 --dist worksteal -m smoke "$@"
