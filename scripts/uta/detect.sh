#!/usr/bin/env bash
# Detection and instance segmentation: Cascade Mask R-CNN fine-tuned on a CLIP checkpoint.
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
[ $# -ge 2 ] || usage "usage: bash scripts/uta/detect.sh CHECKPOINT NAME [FLAG]... [KEY VALUE]..." \
    "  CHECKPOINT  file or name of a CLIP, such as output/uta/clip.safetensors" \
    "  NAME        of the folder for the results, OUTPUT/uta/detect/NAME" \
    "  ON          emoji (default): EmojiScenes; coco or lvis: with the paper's settings, CONFIG base (default) or large" \
    "  SEED        of the training (default: 1)" \
    "example: bash scripts/uta/detect.sh emoji_vit_s8_tokens tokens" \
    "example: ON=coco CONFIG=large PROCESSES=32 bash scripts/uta/detect.sh student.safetensors student"
CHECKPOINT=$1 NAME=$2 ON=${ON:-emoji} SEED=${SEED:-1}
shift 2
case $ON in
    emoji) SET=emoji_scenes CONFIG=${CONFIG:-emoji} ;;
    coco) SET=coco_instances CONFIG=coco_${CONFIG:-base} ;;
    lvis) SET=lvis CONFIG=lvis_${CONFIG:-base} ;;
    *) fail "ON is '$ON', expected emoji, coco or lvis" ;;
esac
[ -n "${PYTHON:-}" ] || bash "$HERE/setup.sh" dense
OUT=$RUNS/uta/detect/$NAME/${ON}_seed$SEED exec bash "$RUN" CascadeMaskRCNN "$CONFIG" "$SET" "$SEED" --backbone "$CHECKPOINT" "$@"
