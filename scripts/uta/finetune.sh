#!/usr/bin/env bash
# Contrastive fine-tuning of a pre-trained CLIP (a UTA student with its teacher's text tower, or any other):
# CHECKPOINT CONFIG DATASET SEED. Several machines: start train.py with torchrun as scripts/run.sh does on one.
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
[ $# -ge 4 ] || usage "usage: bash scripts/uta/finetune.sh CHECKPOINT CONFIG DATASET SEED [FLAG]... [KEY VALUE]..." \
    "  CHECKPOINT  file or name of the CLIP to go on from, such as output/uta/clip.safetensors" \
    "  CONFIG      emoji_finetune, finetune_base, finetune_large or the path of a .yaml file" \
    "  DATASET     emoji_captions, image_text, flickr30k, coco_captions" \
    "example: bash scripts/uta/finetune.sh emoji-ViT-S/8 emoji_finetune emoji_captions 1" \
    'example: PROCESSES=8 bash scripts/uta/finetune.sh student.safetensors finetune_base image_text 1 \' \
    '             DATASET.PAIRS.SOURCE "cc3m/{00000..00331}.tar" DATASET.PAIRS.EVALUATE ImageNet'
CHECKPOINT=$1 CFG=$2 DATASET=$3 SEED=$4
shift 4
exec bash "$RUN" ContrastiveCLIP "$CFG" "$DATASET" "$SEED" --backbone "$CHECKPOINT" "$@"
