#!/usr/bin/env bash
# Builds the op for the GPU of this machine, tests it there, measures it, trains a little, and writes one report to send
# back. At most 8 minutes; the most telling steps come first, and each has a limit of its own.
#
#   tools/gpu_check.sh [--kit FOLDER] [--rehearse] [--out FOLDER]
#     --kit FOLDER   first install the wheels in it (OpenMMLab and what else is missing), for a machine without network
#     --rehearse     the same steps on the CPU, small: does this script work?
#     --out FOLDER   of the report and the logs (default: work_dirs/gpu_check)
#   PYTHON           the interpreter with torch and the OpenMMLab packages (default: that of .venv, else python3)
#   S6LA_CHECK_SECONDS  of all steps together (default: 480)
#
# Exit status: 0 if every step passed, 1 if one failed, 2 if nothing could be run; the message says what would help.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
kit='' rehearse=0 out=$root/work_dirs/gpu_check failed=0

die() {
    echo "gpu_check: error: $*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        --kit | --out)
            [ $# -gt 1 ] || die "$1 needs a folder"
            if [ "$1" = --kit ]; then kit=$2; else out=$2; fi
            shift
            ;;
        --rehearse) rehearse=1 ;;
        -h | --help) sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
        *) die "unknown argument $1; see --help" ;;
    esac
    shift
done
if [ -n "$kit" ]; then
    kit=$(cd "$kit" 2>/dev/null && pwd) || die "--kit: there is no such folder"
    [ -n "$(ls "$kit"/*.whl 2>/dev/null)" ] || die "--kit: there are no wheels in $kit"
fi
mkdir -p "$out" || die "--out $out cannot be written"
out=$(cd "$out" && pwd)
cd "$root" || exit 2
python=${PYTHON:-$root/.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
command -v "$python" >/dev/null || die "there is no $python. Run tools/setup_env.sh, or set PYTHON."
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONWARNINGS=ignore
report=$out/report.md
deadline=$((SECONDS + ${S6LA_CHECK_SECONDS:-480}))

# step TITLE SECONDS LINES COMMAND...: runs it and puts the last LINES of its output into the report.
step() {
    local title=$1 limit=$2 lines=$3 log begin=$SECONDS status result
    shift 3
    log=$out/$(tr -cs 'a-z0-9' '_' <<<"${title,,}" | sed 's/_$//').log
    [ "$limit" -lt $((deadline - SECONDS)) ] || limit=$((deadline - SECONDS))
    if [ "$limit" -lt 5 ]; then
        result='not run, the time is up'
        echo "$result" >"$log"
    else
        printf '[gpu_check] %s ... ' "$title"
        timeout -k 5 "$limit" "$@" >"$log" 2>&1 </dev/null
        status=$?
        result="passed in $((SECONDS - begin)) s"
        case $status in
            0) ;;
            124 | 137) result="FAILED: stopped after $limit s" failed=1 ;;
            *) result="FAILED with status $status after $((SECONDS - begin)) s" failed=1 ;;
        esac
        echo "$result"
    fi
    printf '## %s: %s\n\n```text\n%s\n```\n\n' "$title" "$result" "$(tail -n "$lines" "$log" | cut -c 1-220)" \
        >>"$report"
    [ "${result%% *}" = passed ]
}

skip() { printf '## %s: skipped, %s\n\n' "$1" "$2" >>"$report"; }

{
    echo '# GPU check of s6la_mm'
    echo
    echo "$(date -u '+%Y-%m-%d %H:%M') UTC, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)$(
        [ $rehearse = 1 ] && echo ', rehearsed on the CPU'
    )"
    echo
} >"$report"
if [ -n "$kit" ]; then
    if [ $rehearse = 1 ]; then # into a folder that nobody imports from
        set -- --target "$out/kit"
    else
        set --
    fi
    step 'Kit' 90 5 "$python" -m pip install --no-index --no-deps "$@" "$kit"/*.whl ||
        die "the kit does not install: $out/kit.log"
fi

# What is here, and if that cannot do, in one sentence why and what would help.
"$python" - "$rehearse" >"$out/machine.log" 2>&1 <<'PY'
import importlib, platform, shutil, subprocess, sys

try:
    import torch
except ImportError as error:
    sys.exit(f'torch does not import ({error}). Install it, or set PYTHON to an interpreter that has it.')
cuda = torch.version.cuda
print(f'{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}, CUDA {cuda}')
smi = shutil.which('nvidia-smi')
if smi:
    query = [smi, '--query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem', '--format=csv']
    print(subprocess.run(query, capture_output=True, text=True).stdout.strip())
if sys.argv[1] == '0':
    if not smi:
        why = 'there is no NVIDIA GPU here, or no driver (nvidia-smi is not found).'
        sys.exit(f'{why} Run this on a machine with one, or with --rehearse.')
    if cuda is None:
        sys.exit(f'torch {torch.__version__} was built without CUDA. Install a build with CUDA.')
    try:
        torch.cuda.init()
    except Exception as error:
        if 'driver' in str(error) and 'old' in str(error):
            sys.exit(f'the driver is too old for CUDA {cuda}. Update it, or install a torch for an older CUDA.')
        sys.exit(f'torch sees no GPU ({str(error).splitlines()[0]}). Look at CUDA_VISIBLE_DEVICES and the driver.')
    known = [int(name.split('_')[1].rstrip('af')) for name in torch.cuda.get_arch_list() if name.startswith('sm_')]
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        name, number = torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).multi_processor_count
        print(f'GPU {i}: {name}, compute capability {major}.{minor}, {number} multiprocessors')
        if major * 10 + minor < min(known):
            why = f'{name} (sm_{major}{minor}) is older than what torch was built for (sm_{min(known)}).'
            sys.exit(f'{why} Install an older torch, or take a newer GPU.')
for package in ('mmcv.ops', 'mmdet.models', 'mmseg', 'mmpretrain', 'pytest'):
    try:
        importlib.import_module(package)
    except Exception as error:
        sys.exit(f'{package} does not import ({error}). Install what is missing, or put its wheel into the kit.')
PY
status=$?
{ echo '## Machine' && echo && echo '```text' && cat "$out/machine.log" && echo '```' && echo; } >>"$report"
[ $status = 0 ] || die "$(tail -n 1 "$out/machine.log")"

if [ $rehearse = 1 ]; then
    device=cpu selection='cpu and every_dtype' size=(2 8 20 34) image=(1 3 64 64) iterations=4 archs=(r18) rounds=1 dtypes=(float32)
    build() {
        "$python" -c 'from s6la_mm.ops import extension as e; print(e.build_info()); assert not e.load_error()' ||
            S6LA_WITH_OPS=1 S6LA_WITH_CUDA=0 FORCE_CUDA='' "$python" setup.py build_ext --inplace
    }
    seconds=(240 120 120 120 120 120) copy=16
else
    device=cuda selection='cuda and not more_elements' size=(8 32 200 336) image=(8 3 800 1344)
    iterations=100 archs=(r50) rounds=10 dtypes=(float32 bfloat16)
    build() {
        FORCE_CUDA=1 S6LA_WITH_OPS=1 "$python" -m pip install --no-index --no-build-isolation --no-deps -e . &&
            "$python" -c 'from s6la_mm.ops.extension import build_info as b; print(b()); assert b()["cuda"]'
    }
    seconds=(180 120 60 60 60 60) copy=256
fi
export -f build
export python

# From here on nothing ends the run: a later step may say what an earlier one could not.
step 'Build' "${seconds[0]}" 4 bash -c build
S6LA_REQUIRE_OPS=1 step 'Tests of the op' "${seconds[1]}" 30 "$python" -m pytest -q -p no:cacheprovider \
    tests/test_ops/test_kernels.py tests/test_ops/test_kernels_normalized.py tests/test_ops/test_kernels_backward.py \
    tests/test_ops/test_kernels_values.py -k "$selection"
step 'Op, maps' "${seconds[2]}" 40 "$python" tools/benchmarks/op.py --device $device --shape "${size[@]}" \
    --dtype "${dtypes[@]}" --rounds $rounds --copy-mib $copy --against eager
if [ $rehearse = 0 ]; then
    step 'Op, tokens' 40 30 "$python" tools/benchmarks/op.py --device $device --token 128 384 16 --rounds 10 \
        --against eager torch.compile
fi
for layout in channels_last contiguous; do
    step "Backbones, bfloat16 autocast, $layout" "${seconds[3]}" 30 "$python" tools/benchmarks/backbone.py \
        --device $device --arch "${archs[@]}" --shape "${image[@]}" --dtype bfloat16 --layout $layout --rounds $rounds
done
step 'Backbones, without the compiled op' "${seconds[3]}" 30 "$python" tools/benchmarks/backbone.py --device $device \
    --arch "${archs[@]}" --shape "${image[@]}" --dtype bfloat16 --rounds 2 --eager
if [ $rehearse = 0 ]; then
    step 'Backbones, DeiT-S' 60 30 "$python" tools/benchmarks/backbone.py --device $device --arch deit-s \
        --shape 128 3 224 224 --dtype bfloat16 --rounds 10
fi
if command -v compute-sanitizer >/dev/null && [ $rehearse = 0 ]; then
    step 'compute-sanitizer' 60 15 compute-sanitizer --error-exitcode 9 "$python" -m pytest -q -p no:cacheprovider \
        tests/test_ops/test_kernels_normalized.py -k 'cuda and every_dtype and dtype1'
else
    skip 'compute-sanitizer' "$([ $rehearse = 1 ] && echo 'it needs a GPU' || echo 'it is not on PATH')"
fi
config=configs/quickstart/retinanet_s6la-r18_shapes.py
options=(--cfg-options "train_cfg.max_iters=$iterations" "train_cfg.val_interval=$iterations")
step "Training, $iterations iterations with AMP" "${seconds[5]}" 15 "$python" tools/train.py "$config" --amp \
    --work-dir "$out/amp" "${options[@]}"
gpus=$([ $rehearse = 1 ] && echo 0 || "$python" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -gt 1 ]; then
    step 'Training, two processes' 60 15 bash tools/dist_train.sh "$config" 2 --work-dir "$out/two" "${options[@]}"
else
    skip 'Training, two processes' 'it needs two GPUs'
fi
plan=$(ls configs/comparisons/*cifar*.py 2>/dev/null | head -n 1)
if [ -n "$plan" ] && [ $rehearse = 0 ]; then
    step 'Comparison' $((deadline - SECONDS)) 30 \
        "$python" tools/analysis_tools/compare.py "$plan" --out "$out/comparison"
else
    skip 'Comparison' "$([ -n "$plan" ] && echo 'it needs a GPU' || echo 'there is no plan for CIFAR')"
fi
echo "[gpu_check] $([ $failed = 0 ] && echo 'all passed' || echo 'something failed'); report: $report"
exit $failed
