#!/usr/bin/env bash
# Tests a stack of docs/environments.md: makes its environment, builds the wheel in it and installs it, runs the default
# tests with the op of that wheel, a short training that is killed and resumed, and the op's benchmark. Appends a row to
# docs/environments.md.
#   .dev_scripts/test_matrix.sh A|B|C|D [pytest's arguments]
#   S6LA_STACKS     where the environments live (default: the user's cache); one that is there is used
#   PYTHON          the interpreter they are made from (default: python3.11)
#   PIP_FIND_LINKS  a wheel of mmcv that lies there is used, else its ops are compiled, about 20 minutes on two cores
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

stack=${1:-}
shift || true
originals=(mmengine==0.10.7 mmdet==3.3.0 mmsegmentation==1.2.2 mmpretrain==1.2.0 ftfy regex importlib_metadata)
older=(numpy==1.26.4 opencv-python==4.10.0.84 setuptools==69.5.1 "${originals[@]}")
tests=(wheel ninja pytest pytest-xdist timm safetensors)
mmcv=mmcv==2.1.0
named=(torch numpy mmcv mmdet)
case $stack in
    A) pins=(torch==2.1.2 torchvision==0.16.2 "${older[@]}") ;;
    B) pins=(-r requirements/pinned.txt) ;;
    C) pins=(torch==2.4.1 torchvision==0.19.1 "${older[@]}") mmcv=mmcv==2.2.0 ;;
    D)
        pins=(torch===2.13.0 torchvision==0.28.0 'numpy>=2,<3' 'setuptools<82' ftfy regex importlib_metadata
            onedl-mmengine==0.10.12 onedl-mmdetection==3.5.1 onedl-mmsegmentation==1.4.2 onedl-mmpretrain==1.3.6)
        mmcv=onedl-mmcv==2.3.6
        named=(torch numpy onedl-mmcv onedl-mmdetection)
        ;;
    *)
        echo "error: '$stack' is no stack: there are A, B, C and D (docs/environments.md)" >&2
        exit 2
        ;;
esac

venv=${S6LA_STACKS:-${XDG_CACHE_HOME:-$HOME/.cache}/s6la_mm}/stack-$stack
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }
say() { printf '[matrix %s] %s\n' "$stack" "$*"; }

if ! "$venv/bin/python" -c 'import torch, mmcv._ext' 2>/dev/null; then
    say "making $venv"
    "${PYTHON:-python3.11}" -m venv "$venv"
    pip install "${pins[@]}" "${tests[@]}"
    PATH=$venv/bin:$PATH MMCV_WITH_OPS=1 CFLAGS="${CFLAGS:-} -g0" pip install --no-build-isolation --no-deps --no-cache-dir "$mmcv"
fi
if [ "$stack" = C ]; then # the two bounds, as `import s6la_mm` says
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    sed -i "s/^\(mmcv_maximum_version\) = .*/\1 = '2.3.0'/" "$packages/mmdet/__init__.py"
    sed -i "s/^\(MMCV_MAX\) = .*/\1 = '2.3.0'/" "$packages/mmseg/__init__.py"
fi

say 'building and installing the wheel'
pip list --format=freeze --exclude s6la_mm >"$work/before"
SECONDS=0
PATH=$venv/bin:$PATH S6LA_WITH_OPS=1 pip wheel --no-build-isolation --no-deps -w "$work" .
build=$SECONDS
pip install --force-reinstall --no-deps "$work"/s6la_mm-*.whl
pip install "$work"/s6la_mm-*.whl # with what it requires: all of it is there
pip list --format=freeze --exclude s6la_mm >"$work/after"
diff "$work/before" "$work/after" || { say 'error: installing changed other packages' && exit 1; }
(cd "$work" && "$venv/bin/python" -W ignore -m s6la_mm.collect_env)

say 'tests'
git ls-files -z --cached --others --exclude-standard | xargs -0 tar c | tar x --one-top-level="$work/clone"
cp "$("$venv/bin/python" -W ignore -c 'import s6la_mm._ext as e; print(e.__file__)')" "$work/clone/s6la_mm/"
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
