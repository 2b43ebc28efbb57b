#!/usr/bin/env bash
# Methods side by side on handwritten digits with the small embedded CLIP, 16 shots, on a CPU or GPU: a task the model
# cannot do without training. What they do where it can: recipes/embedded_few_shot.yaml, table in the README.
# Sets up everything it needs; finished runs are used again. Results: output/quickstart/; DATA and OUTPUT name other folders.
#   bash scripts/quickstart.sh                                              ZeroshotCLIP, CoOp and ALIGN
#   METHODS="ZeroshotCLIP CoOp MaPLe ALIGN" bash scripts/quickstart.sh      any methods that have a config emoji
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

known=()
for file in $(grep -ls '^emoji:' configs/trainers/*.yaml; ls configs/trainers/*/emoji.yaml 2>/dev/null); do
  file=${file%/emoji.yaml}
  known+=("$(basename "$file" .yaml)")
done
methods=()
for method in ${METHODS-ZeroshotCLIP CoOp ALIGN}; do
  case " ${known[*]} " in
    *" $method "*) ;;
    *) echo "error: METHODS names '$method', expected some of ${known[*]}" >&2; exit 2 ;;
  esac
  case " ${methods[*]-} " in *" $method "*) ;; *) methods+=("$method") ;; esac
done
if [ ${#methods[@]} -eq 0 ]; then echo "error: METHODS is empty, expected some of ${known[*]}" >&2; exit 2; fi

bash scripts/setup.sh
folder=${OUTPUT:-output}/quickstart
for method in "${methods[@]}"; do
  echo "== $method"
  config=configs/trainers/$method/emoji_digits.yaml
  [ -f "$config" ] || grep -qs '^emoji_digits:' "configs/trainers/$method.yaml" || config=configs/trainers/$method/emoji.yaml
  .venv/bin/python train.py --root "${DATA:-data}" --seed 1 --trainer "$method" \
    --config-file "$config" \
    --dataset-config-file configs/datasets/digits.yaml \
    --output-dir "$folder/$method" DATASET.NUM_SHOTS 16
done
.venv/bin/python -m tools.quickstart "$folder" "${methods[@]}"
