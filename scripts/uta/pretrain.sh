#!/usr/bin/env bash
# A small image tower learns from the embedded CLIP, in four ways that cost about the same; then their zero-shot accuracy.
#   bash scripts/uta/pretrain.sh [STAGE]...      default: start uta mask_tokens contrastive finetune
#     start        the student before training (random image tower, the teacher's text tower)
#     uta          unmasked token alignment, on images alone
#     mask_tokens  the same with mask tokens in the place of the patches that are left out
#     contrastive  no teacher of images: contrastive training of the same student on images and captions
#     finetune     contrastive fine-tuning of the student of `uta`
# DATA is the folder of the data (default data), OUTPUT of the runs (default output/uta). A stage that is done is left
# alone, one that was stopped goes on. Cost and results: docs/methods/uta.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash scripts/setup.sh
output=${OUTPUT:-output/uta}
data=${DATA:-data}

# train STAGE TRAINER CONFIG [KEY VALUE]...
train() {
  local stage=$1 trainer=$2 config=$3
  shift 3
  .venv/bin/python train.py --root "$data" --seed 1 --trainer "$trainer" --config-file "configs/trainers/$config.yaml" \
    --dataset-config-file configs/datasets/emoji_captions.yaml --output-dir "$output/$stage" "$@"
}

for stage in "${@:-start uta mask_tokens contrastive finetune}"; do
  for name in $stage; do
    case "$name" in
      start) train start UTA UTA/emoji_vit_s8 TRAINER.UTA.OBJECTIVE none TRAINER.UTA.SAVE fp32 TEST.NO_TEST True ;;
      uta) train uta UTA UTA/emoji_vit_s8 ;;
      mask_tokens)  # a step costs 1.4 times as much
        train mask_tokens UTA UTA/emoji_vit_s8 TRAINER.UTA.OBJECTIVE mask_tokens OPTIM.MAX_EPOCH 6 ;;
      contrastive) train contrastive ContrastiveCLIP ContrastiveCLIP/emoji_vit_s8_student \
        MODEL.BACKBONE.NAME "$output/start/clip.safetensors" ;;
      finetune) train finetune ContrastiveCLIP ContrastiveCLIP/emoji_vit_s8_finetune \
        MODEL.BACKBONE.NAME "$output/uta/clip.safetensors" ;;
      *) echo "error: unknown stage $name; see the top of scripts/uta/pretrain.sh" >&2; exit 2 ;;
    esac
    [ "$name" = start ] || .venv/bin/python -m tools.emoji_zero_shot "$output/$name/clip.safetensors" --root "$data"
  done
done
