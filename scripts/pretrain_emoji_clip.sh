#!/usr/bin/env bash
# Trains the two small embedded CLIPs from scratch and puts them in the place of those in clip/weights/.
# Needs npm (the icons of 12 icon sets are fetched once, about 20 MB) and about four hours on one CPU core, less on a GPU.
# A run that was stopped continues when this is started again. Afterwards: the tables of the model card.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
output=output/pretrain/emoji_vit_s8

if [ ! -f "${XDG_CACHE_HOME:-$HOME/.cache}/align-prompt/embedded/icons.xz" ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r tools/embedded/requirements.txt
  .venv/bin/python -m tools.embedded.build --icons
fi

# stage CONFIG SEED OUTPUT [KEY VALUE]...
stage() {
  local config=$1 seed=$2 folder=$3
  shift 3
  .venv/bin/python train.py --root "${DATA:-data}" --seed "$seed" --trainer ContrastiveCLIP \
    --config-file "configs/trainers/ContrastiveCLIP/$config.yaml" \
    --dataset-config-file configs/datasets/emoji_captions.yaml --output-dir "$folder" "$@"
}
stage emoji_vit_s8 1 "$output/stage1"
stage emoji_vit_s8_stage2 2 "$output/stage2" MODEL.BACKBONE.NAME "$output/stage1/clip.safetensors"
stage emoji_vit_s8_stage2 3 "$output/stage3" MODEL.BACKBONE.NAME "$output/stage2/clip.safetensors" \
  OPTIM.MAX_EPOCH 150 TRAINER.CONTRASTIVE.EVAL_FREQ 25

cp "$output/stage3/clip.safetensors" clip/weights/emoji_vit_s8.safetensors
.venv/bin/python -m tools.emoji_zero_shot emoji-ViT-S/8 --root "${DATA:-data}" \
  --run "$output"/stage{1,2,3} --curve docs/images/emoji_vit_s8_curve.png

# From the weights just made, with the loss on patches; the result is the mean of the weights before and after.
stage emoji_vit_s8_tokens 4 "$output/tokens"
.venv/bin/python - "$output/tokens/clip.safetensors" <<'PYTHON'
import sys

import torch

import clip
from clip.checkpoints import PIXEL_MEAN, PIXEL_STD

before, after = (clip.load(name)[0] for name in ("emoji-ViT-S/8", sys.argv[1]))
weights = before.state_dict()
after.load_state_dict({name: (value + weights[name]) / 2 for name, value in after.state_dict().items()})
pixels = {"mean": list(PIXEL_MEAN), "std": list(PIXEL_STD)}
clip.save_model(after, "clip/weights/emoji_vit_s8_tokens.safetensors", pixels, torch.float16)
PYTHON
.venv/bin/python -m tools.emoji_zero_shot emoji_vit_s8_tokens --root "${DATA:-data}"
.venv/bin/python -m tools.patch_accuracy emoji-ViT-S/8 emoji_vit_s8_tokens --styles fluent-flat --root "${DATA:-data}" \
  --run "$output/tokens" --curve docs/images/emoji_vit_s8_tokens_curve.png
