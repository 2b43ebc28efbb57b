#!/usr/bin/env bash
# Everything that is measured of a CLIP checkpoint: zero-shot classification by one template and by an ensemble,
# robustness sets, a linear probe and retrieval; then one table of all results.
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
[ $# -ge 2 ] || usage "usage: bash scripts/uta/evaluate.sh CHECKPOINT NAME [PART]... [KEY VALUE]..." \
    "  CHECKPOINT  file or name of a CLIP, such as output/uta/clip.safetensors" \
    "  NAME        of the folder for the results, OUTPUT/uta/evaluate/NAME" \
    "  PART        zeroshot ensemble robustness probe retrieval; all if none is named" \
    "  ON          emoji (default): the embedded data sets; vit_b16: the data sets of the papers at 224 pixels" \
    "  SETS        data sets of zeroshot, ensemble and probe" \
    "example: bash scripts/uta/evaluate.sh emoji-ViT-S/8 teacher zeroshot retrieval" \
    "example: ON=vit_b16 bash scripts/uta/evaluate.sh student.safetensors student INPUT.SIZE '(336, 336)'"
CHECKPOINT=$1 NAME=$2 ON=${ON:-emoji} PARTS=""
shift 2
while [ $# -gt 0 ]; do
    case $1 in
        zeroshot | ensemble | robustness | probe | retrieval) PARTS="$PARTS $1" && shift ;;
        *) break ;;
    esac
done
PARTS=${PARTS:-zeroshot ensemble robustness probe retrieval}
PLACE=$RUNS/uta/evaluate/$NAME
EMOJI="openmoji openmoji-black fluent-flat fluent-hc fluent-3d streamline"
case $ON in
    emoji)
        SETS=${SETS:-emoji_groups emoji_animals emoji_food emoji_objects emoji_travel emoji_faces emoji_people digits}
        PROBED=emoji_groups
        ;;
    vit_b16)
        SETS=${SETS:-imagenet caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101 cifar10 cifar100}
        PROBED=$SETS
        ;;
    *) fail "ON is '$ON', expected emoji or vit_b16" ;;
esac

# measure FOLDER METHOD CONFIG DATASET [ARGUMENT]...
measure() {
    local folder=$1 method=$2 config=$3 dataset=$4
    shift 4
    OUT=$PLACE/$folder bash "$RUN" "$method" "$config" "$dataset" 1 --backbone "$CHECKPOINT" "$@"
}

for PART in $PARTS; do
    case $PART in
        zeroshot | ensemble)
            [ "$PART" = zeroshot ] && TEMPLATES=dataset || TEMPLATES=imagenet80
            for SET in $SETS; do
                measure "$PART/$SET" ZeroshotCLIP "$ON" "$SET" "$@" TRAINER.ZEROSHOT.TEMPLATES "$TEMPLATES"
            done
            ;;
        robustness)
            if [ "$ON" = emoji ]; then
                for STYLE in $EMOJI; do
                    measure "robustness/emoji_groups_$STYLE" ZeroshotCLIP "$ON" emoji_groups "$@" DATASET.TARGET_DOMAINS "['$STYLE']"
                done
            else
                for SET in imagenetv2 imagenet_sketch imagenet_a imagenet_r; do
                    measure "robustness/$SET" ZeroshotCLIP "$ON" "$SET" "$@" TRAINER.ZEROSHOT.TEMPLATES imagenet80
                done
            fi
            ;;
        probe)
            CFG=$ON
            [ "$ON" = emoji ] || CFG=${ON}_few_shot
            for SET in $PROBED; do
                measure "probe/$SET" LinearProbe "$CFG" "$SET" "$@" DATASET.NUM_SHOTS "$SHOTS"
            done
            ;;
        retrieval)
            if [ "$ON" = emoji ]; then
                for STYLE in $EMOJI; do
                    measure "retrieval/emoji_retrieval_$STYLE" ZeroshotCLIP "$ON" emoji_retrieval "$@" DATASET.TARGET_DOMAINS "['$STYLE']"
                done
            else
                for SET in flickr30k coco_captions; do
                    measure "retrieval/$SET" ZeroshotCLIP "$ON" "$SET" "$@"
                done
            fi
            ;;
    esac
done
cd "$HERE/.."
exec "${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}" -m tools.checkpoint "$PLACE"
