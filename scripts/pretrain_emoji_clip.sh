#!/usr/bin/env bash
# Trains the small embedded CLIP from scratch and puts it in the place of the one in clip/weights/.
# Needs npm (the icons of 12 icon sets are fetched once, about 20 MB) and about an hour on 2 CPU cores.
# A run that was stopped continues when this is started again. Afterwards: the table of the model card.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
output=output/pretrain/emoji_vit_s8

if [ ! -f "${XDG_CACHE_HOME:-$HOME/.cache}/align-prompt/embedded/icons.xz" ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-build.txt
  .venv/bin/python -m datasets.embedded.build --icons
fi
.venv/bin/python train.py --root "${DATA:-data}" --seed 1 --trainer ContrastiveCLIP \
  --config-file configs/trainers/ContrastiveCLIP/emoji_vit_s8.yaml \
  --dataset-config-file configs/datasets/emoji_captions.yaml --output-dir "$output"
cp "$output/clip.safetensors" clip/weights/emoji_vit_s8.safetensors
.venv/bin/python -m reports.emoji_zero_shot emoji-ViT-S/8 --root "${DATA:-data}" \
  --run "$output" --curve docs/images/emoji_vit_s8_curve.png
