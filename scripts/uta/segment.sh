#!/usr/bin/env bash
# Semantic segmentation on a CLIP checkpoint: its tokens against class names without training, and UperNet fine-tuned.
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
[ $# -ge 2 ] || usage "usage: bash scripts/uta/segment.sh CHECKPOINT NAME [PART]... [KEY VALUE]..." \
    "  CHECKPOINT  file or name of a CLIP, such as output/uta/clip.safetensors" \
    "  NAME        of the folder for the results, OUTPUT/uta/segment/NAME" \
    "  PART        zeroshot upernet multiscale; the first two if none is named. multiscale evaluates upernet again" \
    "  ON          emoji (default): EmojiScenes; ade20k: ADE20K with the paper's settings, CONFIG base (default) or large" \
    "  SEED        of upernet (default: 1)" \
    "example: bash scripts/uta/segment.sh emoji_vit_s8_tokens tokens zeroshot" \
    "example: ON=ade20k CONFIG=large PROCESSES=8 bash scripts/uta/segment.sh student.safetensors student"
CHECKPOINT=$1 NAME=$2 ON=${ON:-emoji} SEED=${SEED:-1} PARTS=""
shift 2
while [ $# -gt 0 ]; do
    case $1 in
        zeroshot | upernet | multiscale) PARTS="$PARTS $1" && shift ;;
        *) break ;;
    esac
done
case $ON in
    emoji) SET=emoji_scenes ZERO=emoji CONFIG=${CONFIG:-emoji} ;;
    ade20k) SET=ade20k ZERO=ade20k CONFIG=${CONFIG:-base} ;;
    *) fail "ON is '$ON', expected emoji or ade20k" ;;
esac
PLACE=$RUNS/uta/segment/$NAME
TRAINED=$PLACE/upernet_seed$SEED

[ -n "${PYTHON:-}" ] || bash "$HERE/setup.sh" dense

for PART in ${PARTS:-zeroshot upernet}; do
    case $PART in
        zeroshot) OUT=$PLACE/zeroshot bash "$RUN" ZeroshotSegmentation "$ZERO" "$SET" 1 --backbone "$CHECKPOINT" "$@" ;;
        upernet) OUT=$TRAINED bash "$RUN" UperNet "$CONFIG" "$SET" "$SEED" --backbone "$CHECKPOINT" "$@" ;;
        multiscale)
            OUT=$PLACE/multiscale_seed$SEED bash "$RUN" UperNet "$CONFIG" "$SET" "$SEED" --backbone "$CHECKPOINT" --eval-only \
                --model-dir "$TRAINED" "$@" TRAINER.UPERNET.TEST_SCALES '[0.5, 0.75, 1.0, 1.25, 1.5, 1.75]' TRAINER.UPERNET.TEST_FLIP True
            ;;
    esac
done
