#!/usr/bin/env bash
# Measures on a machine with a GPU, within ten minutes, what can be said of it only there: latency
# tables of presets under CUDA graphs, eager and compiled, random networks against them and against
# the estimate that knows no table, the cost of weight sharing, and two workers on one GPU.
#
#     benchmarks/on_gpu.sh [--dry] [OUT]
#
# Tables and figures are left in the folder OUT, by default benchmarks/results/on_gpu, and all
# figures in OUT.json. --dry goes through every line on a CPU, with little of everything. Part
# that fails or takes too long is named, and the others are measured all the same.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
dry=0
if [ "${1:-}" = --dry ]; then dry=1; shift; fi
out=${1:-benchmarks/results/on_gpu}
failed=0

part() { # seconds at most, then arguments of python
  local most=$1 begin=$SECONDS
  shift
  timeout --kill-after=5 "$most" "$python" "$@" || { failed=1; echo "FAILED ($?): $*"; }
  echo "[$((SECONDS - begin)) s: $*]"
}

if [ $dry = 1 ]; then
  common="$out --device cpu --precision fp32 --networks 3 --seconds 2 --estimate h100"
  for runtime in eager onnxruntime inductor; do
    part 600 benchmarks/on_gpu_latency.py $common --space digits --runtime $runtime --choices few
  done
  part 600 benchmarks/on_gpu_training.py "$out" --device cpu --spaces digits:8 --rounds 2 \
    --workers digits:64 --epochs 1
else
  presets=
  for preset in tiny mobile; do # those that there are
    [ -e "search_space/presets/$preset.yaml" ] && presets="$presets $preset"
  done
  for preset in $presets; do
    run="benchmarks/on_gpu_latency.py $out --space $preset"
    # all runtimes see the largest resolution at batch 64, and a compiler few entries
    part 150 $run --runtime cudagraph --batch-size 1 --choices all --seconds 50
    part 80 $run --runtime eager --batch-size 1 --choices all --seconds 30
    part 120 $run --runtime cudagraph --batch-size 64 --choices largest_resolution --seconds 50
    part 80 $run --runtime eager --batch-size 64 --choices largest_resolution --seconds 35
    for batch in 1 64; do
      part 120 $run --runtime inductor --batch-size $batch --choices few --networks 12 --seconds 20
    done
  done
  part 120 benchmarks/on_gpu_training.py "$out"
fi
part 60 benchmarks/on_gpu.py "$out" "$out.json"
exit $failed
