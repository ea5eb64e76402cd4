#!/usr/bin/env bash
# From a bare machine to a trained, evaluated detector and a page of pictures: sets up the environment, trains the
# default experiment on its generated data set, draws the report. Arguments go to tools/train.py (e.g. --resume).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

name=mask-rcnn_s6la-r18_shapes
work_dir=work_dirs/$name
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
        --work-dir) j=$((i + 1)) && work_dir=${!j:?--work-dir needs a folder} ;;
        --work-dir=*) work_dir=${!i#--work-dir=} ;;
    esac
done

cd "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # this clone's code, even where clones share the environment
"$venv/bin/python" tools/train.py "configs/quickstart/$name.py" --work-dir "$work_dir" "$@"

log=$(ls -t "$work_dir"/*/*.log | head -n 1)
echo 'Final metrics on the validation split:'
awk '/coco\/bbox_mAP:/ { last = $0 } END { print last }' "$log" | grep -oE 'coco/(bbox|segm)_mAP(_50|_75)?: [0-9.]+' || true
"$venv/bin/python" tools/analysis_tools/make_report.py "$work_dir"
