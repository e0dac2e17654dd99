#!/usr/bin/env bash
# Measures on a machine with a GPU, within ten minutes, what can be said of it only there: latency
# tables of presets under CUDA graphs, eager and compiled, random networks against them and against
# the estimate that knows no table, the cost of weight sharing, and two workers on one GPU.
#
#     benchmarks/on_gpu.sh [--dry] [OUT]
#
# Tables and figures are left in the folder OUT, by default benchmarks/results/on_gpu, and all
# figures in OUT.json. --dry goes through every line on a CPU, with little of everything. A part
# that fails or takes too long is named, and the others are measured all the same.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
dry=0
if [ "${1:-}" = --dry ]; then dry=1; shift; fi
out=${1:-benchmarks/results/on_gpu}
limit=590 # seconds for all parts
failed=0

part() { # seconds at most, then arguments of python
  local most=$1 begin=$SECONDS left=$((limit - SECONDS))
  shift
  if [ $dry = 0 ] && [ $left -lt "$most" ]; then most=$left; fi
  if [ "$most" -le 0 ]; then failed=1; echo "LEFT OUT, the time is over: $*"; return; fi
  timeout --kill-after=5 "$most" "$python" "$@" || { echo "FAILED ($?): $*"; failed=1; }
  echo "[$((SECONDS - begin)) s: $*]"
}

if [ $dry = 1 ]; then
  common="$out --device cpu --precision fp32 --space digits --choices few --networks 3 --seconds 1"
  for runtime in eager onnxruntime inductor; do
    part 600 benchmarks/on_gpu_latency.py $common --runtime $runtime --estimate h100
  done
  part 600 benchmarks/on_gpu_training.py "$out" --device cpu --spaces digits:8 --rounds 2 \
    --workers digits:64 --epochs 1
else
  presets=
  number=0
  for preset in tiny mobile; do # those that there are
    if [ -e "search_space/presets/$preset.yaml" ]; then
      presets="$presets $preset"
      number=$((number + 1))
    fi
  done
  run="benchmarks/on_gpu_latency.py $out --networks 40"
  choices=all # of the first preset, with which tables of other GPUs are estimated
  for preset in $presets; do
    part 120 $run --space $preset --runtime eager --batch-size 1 --choices $choices \
      --seconds $((8 / number))
    part 90 $run --space $preset --runtime eager --batch-size 64 --choices few \
      --seconds $((8 / number))
    # capturing a graph takes a tenth of a second for every entry
    for batch in 1 64; do
      part 90 $run --space $preset --runtime cudagraph --batch-size $batch --choices few \
        --networks 12 --seconds $((8 / number))
    done
    if [ "$choices" = all ]; then part 120 benchmarks/on_gpu_training.py "$out"; fi
    choices=largest_resolution
  done
  for preset in $presets; do # last, since a compiler needs seconds for every entry
    for batch in 1 64; do
      part 150 $run --space $preset --runtime inductor --batch-size $batch --choices few \
        --networks 12 --seconds $((5 / number))
    done
  done
fi
limit=$((limit + 60)) part 60 benchmarks/on_gpu.py "$out" "$out.json"
exit $failed
