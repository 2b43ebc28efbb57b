#!/usr/bin/env bash
# Everything that a GPU must show, in one command on a machine with a driver and Python: at most 8 minutes after the
# packages are there. Results are written as they come: OUTPUT/tests.txt, OUTPUT/gpu.json and OUTPUT/gpu.md.
#   bash scripts/gpu_check.sh [--rehearse] [options of `python -m benchmarks gpu`]
# OUTPUT chooses the folder (default output/gpu_check). --rehearse runs the same on the CPU with smaller sizes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

output=${OUTPUT:-output/gpu_check}
mkdir -p "$output"
bash scripts/setup.sh dev || exit 1
status=0
echo "GPU tests (at most 150 s) ..." >&2
# an interrupt, and not the end, so that pytest still says what failed until then; every test has its line
timeout --signal=INT --kill-after=10 150 .venv/bin/python -m pytest -m gpu -vv --tb=short > "$output/tests.txt" 2>&1 \
  || { status=$?; echo "GPU tests end with status $status" >&2; }
tail -n 1 "$output/tests.txt"
timeout --kill-after=10 310 .venv/bin/python -m benchmarks gpu --output "$output" "$@" || status=$?
echo "Results are in $output" >&2
exit "$status"
