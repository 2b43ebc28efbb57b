#!/usr/bin/env bash
# LLaVA on a CLIP checkpoint: questions about EmojiScenes with a language model that is trained here, or the paper's two
# stages around a language model of yours, and LLaVA-Bench.
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
[ $# -ge 2 ] || usage "usage: bash scripts/uta/llava.sh CHECKPOINT NAME [FLAG]... [KEY VALUE]..." \
    "  CHECKPOINT  file or name of a CLIP, such as output/uta/clip.safetensors" \
    "  NAME        of the folder for the results, OUTPUT/uta/llava/NAME" \
    "  ON          emoji (default): EmojiScenes; paper: captions of CC-3M, then LLaVA-Instruct" \
    "  LANGUAGE    of paper: folder of a causal language model" \
    "  SEED        of the training (default: 1)" \
    "example: bash scripts/uta/llava.sh emoji_vit_s8_tokens tokens" \
    "example: ON=paper LANGUAGE=vicuna-7b bash scripts/uta/llava.sh student.safetensors student"
CHECKPOINT=$1 NAME=$2 ON=${ON:-emoji} SEED=${SEED:-1}
shift 2
PLACE=$RUNS/uta/llava/$NAME

# train FOLDER CONFIG DATASET [ARGUMENT]...
train() {
    local folder=$1 config=$2 dataset=$3
    shift 3
    OUT=$PLACE/${folder}_seed$SEED bash "$RUN" LLaVA "$config" "$dataset" "$SEED" --backbone "$CHECKPOINT" "$@"
}

case $ON in
    emoji | paper) ;;
    *) fail "ON is '$ON', expected emoji or paper" ;;
esac
[ "$ON" = emoji ] || [ -n "${LANGUAGE:-}" ] || fail "ON=paper needs LANGUAGE, the folder of a causal language model"
[ -n "${PYTHON:-}" ] || bash "$HERE/setup.sh" dense
if [ "$ON" = emoji ]; then
    train emoji emoji emoji_scenes "$@"
else
    train stage1 stage1 llava_pretrain "$@" TRAINER.LLAVA.LANGUAGE_MODEL "$LANGUAGE"
    train stage2 stage2 llava_instruct "$@" TRAINER.LLAVA.LANGUAGE_MODEL "$LANGUAGE" TRAIN.INIT_FROM "$PLACE/stage1_seed$SEED"
fi
