#!/usr/bin/env bash
# Domain generalisation: test what cross_dataset_train.sh trained on other domains of its classes: the variants of ImageNet,
# or styles of emoji_groups after training on one style (DOMAIN, openmoji by default).
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
IMAGENETS="imagenetv2 imagenet_sketch imagenet_a imagenet_r"
STYLES="openmoji-black fluent-flat fluent-hc fluent-3d streamline"
[ $# -ge 2 ] || usage \
    "usage: [SOURCE=imagenet] [SHOTS=16] [LOADEP=N] bash scripts/align/domain_generalization.sh TARGET SEED [FLAG]... [KEY VALUE]..." \
    "  TARGET  with SOURCE=imagenet: $IMAGENETS, or all" \
    "          with SOURCE=emoji_groups: a style such as $STYLES, or all" \
    "  LOADEP  epoch to load (default: the best on validation data if the training chose it, else the last)" \
    "example: DOMAIN=openmoji bash scripts/align/cross_dataset_train.sh emoji_groups 1" \
    "         SOURCE=emoji_groups bash scripts/align/domain_generalization.sh all 1"
TARGET=$1 SEED=$2 SOURCE=${SOURCE:-imagenet}
shift 2
number SHOTS "$SHOTS"
number SEED "$SEED"
CFG=$(config_for cross_dataset "$SOURCE")
PLACE=shots_$SHOTS/$METHOD/$CFG
[ -z "${LOADEP:-}" ] || set -- --load-epoch "$LOADEP" "$@"

# test_on TARGET [ARGUMENT]...
test_on() {
    local target=$1 dataset=$1 trained=$SOURCE
    shift
    if [ "$SOURCE" = emoji_groups ]; then
        local domain=${DOMAIN:-openmoji}
        dataset=$SOURCE trained=${SOURCE}_$domain
        set -- "$@" DATASET.SOURCE_DOMAINS "['$domain']" DATASET.TARGET_DOMAINS "['$target']" DATASET.NUM_SHOTS "$SHOTS"
        target=${SOURCE}_$target
    fi
    OUT=$RUNS/domain_generalization/$target/$PLACE${LOADEP:+_epoch_$LOADEP}/seed$SEED \
        bash "$RUN" "$METHOD" "$CFG" "$dataset" "$SEED" \
        --eval-only --model-dir "$RUNS/cross_dataset/train/$trained/$PLACE/seed$SEED" "$@"
}

case $TARGET in
    all) [ "$SOURCE" = emoji_groups ] && TARGETS=$STYLES || TARGETS=$IMAGENETS ;;
    *) TARGETS=$TARGET ;;
esac
for target in $TARGETS; do
    test_on "$target" "$@"
done
