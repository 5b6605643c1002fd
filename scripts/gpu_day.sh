#!/usr/bin/env bash
# What a GPU is needed for, in one command: versions, the GPU tests, benchmarks against their targets, and training runs.
#
#     GEEXP_DATA=/data scripts/gpu_day.sh                       # 10 minutes; again: what is left
#     DEVICE=cpu MINUTES=5 OUT=/tmp/trial scripts/gpu_day.sh    # a trial of the script at tiny sizes, without a GPU
#
# Each stage leaves its output in $OUT/<stage>.txt, or in <stage>.log if it failed or was out of time, and then the next
# one begins. A stage with a .txt is skipped, so the command can be repeated, in this folder or with a copy of it. The
# summary, with the targets met or missed, is printed and written to $OUT/summary.md. Exit code 0: every stage is done.
#
#     OUT      results (outputs/gpu_day)
#     MINUTES  time for everything (10)
#     STAGES   of: device tests tails steps compiled runs; all of them, in this order
#     DEVICE   cuda or cpu
#     SIZE     full or small; small on a CPU
#     RUNS     the sweep that trains until the time is up (+sweep=evidence trainer=gpu); CIFAR-100 is in GEEXP_DATA
#     PYTHON   the interpreter (.venv/bin/python, else python3)

set -uo pipefail
cd "$(dirname "$0")/.."

DEVICE=${DEVICE:-cuda}
if [[ $DEVICE == cpu ]]; then SIZE=${SIZE:-small}; else SIZE=${SIZE:-full}; fi
OUT=${OUT:-outputs/gpu_day}
STAGES=${STAGES:-device tests tails steps compiled runs}
for name in $STAGES; do
    if [[ ! $name =~ ^(device|tests|tails|steps|compiled|runs)$ ]]; then
        echo "STAGES=$STAGES: there is no stage $name" >&2
        exit 2
    fi
done
default_python=python3
[[ -x .venv/bin/python ]] && default_python=.venv/bin/python
PYTHON=${PYTHON:-$default_python}
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
deadline=$((SECONDS + 60 * ${MINUTES:-10}))
left_out=()
mkdir -p "$OUT"

operator_options=(--device "$DEVICE" --tails --only-ours)
step_options=(--device "$DEVICE" --only-ours)
if [[ $SIZE == small ]]; then
    shapes=(8x8x64)
    operator_options+=(--batch-size 2 --rounds 1 --layouts channels_last)
    step_options+=(--model resnet8 --image-size 32 --batch-size 2 --rounds 1)
    accelerator=$([[ $DEVICE == cpu ]] && echo cpu || echo gpu)
    small_runs="-m ge=none,theta data=fashion_mnist_mini model=resnet8 logger=none optim.batch_size=32 trainer=$accelerator"
    RUNS=${RUNS:-$small_runs schedule.epochs=1 trainer.limit_train_batches=2 trainer.limit_val_batches=2}
else
    shapes=(56x56x256 28x28x512 14x14x1024 7x7x2048) # of ResNet-50
    operator_options+=(--rounds 10 --layouts channels_last)
    step_options+=(--rounds 6)
    RUNS=${RUNS:-+sweep=evidence trainer=gpu}
fi
grace=30 # seconds for checkpoints

child=
trap 'trap - INT TERM; [[ $child ]] && kill "$child" && wait "$child"; exit 130' INT TERM

# stage NAME SECONDS COMMAND...: does nothing if the stage is done or no time is left.
stage() {
    local name=$1 limit=$2 code=0 left=$((deadline - SECONDS - grace))
    shift 2
    if [[ -e $OUT/$name.txt ]]; then
        echo "$name: done earlier" >&2
        return
    fi
    ((limit > left)) && limit=$left
    if ((limit < 5)); then
        left_out+=("$name: no time left")
        return
    fi
    echo "$name: at most $limit s; $OUT/$name.log" >&2
    timeout --kill-after=$grace "$limit" "$@" >"$OUT/$name.log" 2>&1 </dev/null &
    child=$!
    wait "$child" || code=$?
    child=
    if ((code == 0)); then
        mv "$OUT/$name.log" "$OUT/$name.txt"
    elif ((code == 124 || code == 137)); then
        left_out+=("$name: not finished within $limit s")
    else
        left_out+=("$name: exit code $code: $(tail -n 1 "$OUT/$name.log")")
    fi
    [[ $code == 0 ]] || echo "${left_out[-1]}" >&2
}

facts='
import json, sys, torch
from geexp.runs.environment import environment

found = environment() | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
if sys.argv[1] == "cuda":
    if not torch.cuda.is_available():
        sys.exit("torch finds no GPU on this machine; DEVICE=cpu is a trial without one")
    found |= {"device": str(torch.cuda.get_device_properties(0)), "gpus": torch.cuda.device_count()}
print(json.dumps(found, indent=2))
'

device() {
    stage device 120 "$PYTHON" -c "$facts" "$DEVICE"
    [[ -e $OUT/device.txt ]] || exit 2
    command -v nvidia-smi >/dev/null && stage driver 60 nvidia-smi
}

tests() {
    local only=()
    [[ $DEVICE == cpu ]] && only=(--collect-only)
    stage tests 300 "$PYTHON" -m pytest -v -m gpu -p no:cacheprovider tests "${only[@]}"
}

tails() {
    stage tails 150 "$PYTHON" scripts/benchmarks/operators.py "${operator_options[@]}" --shapes "${shapes[@]}" \
        --variants theta_minus theta theta_plus se --extents global --out "$OUT/tails.json"
    stage tails-8 60 "$PYTHON" scripts/benchmarks/operators.py "${operator_options[@]}" --shapes "${shapes[0]}" \
        --variants theta_minus theta --extents 8 --out "$OUT/tails-8.json"
}

steps() {
    local variant
    for variant in theta_minus theta theta_plus se; do
        stage "step-$variant" 150 "$PYTHON" scripts/benchmarks/steps.py "${step_options[@]}" --variants $variant \
            --implementations auto fused reference --out "$OUT/step-$variant.json"
    done
}

compiled() {
    local variant
    for variant in theta_minus theta theta_plus se; do
        stage "compiled-$variant" 240 "$PYTHON" scripts/benchmarks/steps.py "${step_options[@]}" --variants $variant \
            --implementations auto --compile --out "$OUT/compiled-$variant.json"
    done
}

runs() {
    # shellcheck disable=SC2086  # options, separated by spaces
    stage runs 86400 "$PYTHON" -m geexp.train $RUNS launcher.devices=auto launcher.grace=$((grace - 5)) outputs="$OUT/runs"
}

for name in $STAGES; do
    $name
done

{
    printf '# A day with a GPU\n\n'
    grep -hE '"(commit|torch|gpu|device)"' "$OUT/device.txt"
    echo
    "$PYTHON" scripts/benchmarks/quote.py "$OUT"
    [[ -e $OUT/tests.txt ]] && printf 'tests: %s\n\n' "$(tail -n 1 "$OUT/tests.txt")"
    find "$OUT/runs" -name table.md -exec cat {} + 2>/dev/null
    echo
    ((${#left_out[@]})) && printf -- '- left: %s\n' "${left_out[@]}"
} | tee "$OUT/summary.md"
((${#left_out[@]} == 0))
