#!/usr/bin/env bash
# Zero-shot CLIP, CoOp and ALIGN on the embedded benchmark with the small embedded CLIP, on a CPU or GPU.
# Sets up everything it needs; finished runs are used again. Results: output/quickstart/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

methods=(ZeroshotCLIP CoOp ALIGN)
for method in "${methods[@]}"; do
  echo "== $method"
  .venv/bin/python train.py --root "${DATA:-data}" --seed 1 --trainer "$method" \
    --config-file "configs/trainers/$method/emoji.yaml" \
    --dataset-config-file configs/datasets/emoji_groups.yaml \
    --source-domains fluent-flat --target-domains fluent-flat \
    --output-dir "output/quickstart/$method" DATASET.NUM_SHOTS 16
done
.venv/bin/python -m reports.quickstart output/quickstart "${methods[@]}"
