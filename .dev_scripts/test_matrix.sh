#!/usr/bin/env bash
# Tests a stack of docs/environments.md: makes its environment, builds the wheel in it and installs it, runs the default
# tests with the op of that wheel, a short training that is killed and resumed, and the op's benchmark. Appends a row to
# docs/environments.md.
#   .dev_scripts/test_matrix.sh A|B|C|D [pytest's arguments]
#   stack_env.sh makes the environments, and says which variables it reads
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stack_env.sh"
shift
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

copy_files "$work/clone"
say 'building and installing the wheel'
pip list --format=freeze --exclude s6la_mm >"$work/before"
SECONDS=0
PATH=$venv/bin:$PATH S6LA_WITH_OPS=1 pip wheel --no-build-isolation --no-deps -w "$work" "$work/clone"
build=$SECONDS
pip install --force-reinstall --no-deps "$work"/s6la_mm-*.whl
pip install "$work"/s6la_mm-*.whl # with what it requires: all of it is there
pip list --format=freeze --exclude s6la_mm >"$work/after"
diff "$work/before" "$work/after" || { say 'error: installing changed other packages' && exit 1; }
(cd "$work" && "$venv/bin/python" -W ignore -m s6la_mm.collect_env)

say 'tests'
"$venv/bin/python" -m zipfile -e "$work"/s6la_mm-*.whl "$work/wheel"
cp "$work"/wheel/s6la_mm/_ext*.so "$work/clone/s6la_mm/"
cd "$work/clone"
export PYTHONPATH=$PWD OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} S6LA_REQUIRE_OPS=1
"$venv/bin/python" -m pytest -n auto --maxprocesses 8 --dist loadfile "$@" | tee "$work/tests.log"
passed=$(tail -n 1 "$work/tests.log" | grep -oE '[0-9]+ (passed|skipped)' | paste -sd, -)

say 'a training that is killed and resumed'
"$venv/bin/python" .dev_scripts/kill_resume.py configs/quickstart/mask-rcnn_s6la-r18_shapes.py "$work/run" --kills 1 \
    --cfg-options train_cfg.max_iters=60 train_cfg.val_interval=30 default_hooks.checkpoint.interval=20
"$venv/bin/python" tools/benchmarks/op.py --threads 1 --against eager --layout contiguous --rounds 10 \
    --json "$work/op.json"
cd "$root"
"$venv/bin/python" - "$stack" "$passed" "$build" "$work/op.json" "${named[@]}" <<'PY'
import datetime
import json
import sys
from importlib.metadata import version
from pathlib import Path

stack, passed, build, results = sys.argv[1:5]
with open(results, encoding='utf-8') as file:
    measured = json.loads(file.readlines()[-1])['rows']
ratios = [f'{row["eager / it"][0]:.2f}' for row in measured if row['what'] == 'op']
versions = [f'{name} {version(name)}' for name in sys.argv[5:]]
row = [stack, f'{datetime.date.today()}', ', '.join(versions), passed, f'{build} s', ' / '.join(ratios)]
path = Path('docs/environments.md')
mark = '<!-- end of the rows of .dev_scripts/test_matrix.sh -->'
path.write_text(path.read_text(encoding='utf-8').replace(mark, f'| {" | ".join(row)} |\n{mark}'), encoding='utf-8')
print(*row, sep=' | ')
PY
