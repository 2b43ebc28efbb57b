#!/usr/bin/env bash
# Domain generalisation: train on SOURCE, then test on other domains of its classes: the variants of ImageNet, or styles
# of emoji_groups after training on one style (DOMAIN, openmoji by default).
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
CALLED=${CALLED:-scripts/domain_generalization.sh METHOD [train|test]}
IMAGENETS="imagenetv2 imagenet_sketch imagenet_a imagenet_r"
STYLES="openmoji-black fluent-flat fluent-hc fluent-3d streamline"
METHOD=${1:-}
[ $# -eq 0 ] || shift
PART=both
case ${1:-} in train | test) PART=$1 && shift ;; esac
[ $# -ge 2 ] || usage \
    "usage: [SOURCE=imagenet] [DOMAIN=openmoji] [LOADEP=N] bash $CALLED TARGET SEED [FLAG]... [KEY VALUE]..." \
    "  TARGET  with SOURCE=imagenet: $IMAGENETS, or all" \
    "          with SOURCE=emoji_groups: a style such as $STYLES, or all" \
    "  train   only the training, the same as scripts/cross_dataset.sh METHOD train; TARGET has no effect" \
    "  test    only the test of what was trained" \
    "  LOADEP  epoch to test (default: the best on validation data if the training chose it, else the last)" \
    "example: SOURCE=emoji_groups bash $(echo "$CALLED" | sed 's/METHOD \[train|test\]/CoOp/') all 1"
TARGET=$1 SEED=$2 SOURCE=${SOURCE:-imagenet}
shift 2
check_method "$METHOD"
number SHOTS "$SHOTS"
number SEED "$SEED"
[ "$SOURCE" != emoji_groups ] || DOMAIN=${DOMAIN:-openmoji}

if [ "$PART" != test ]; then
    SOURCE=$SOURCE DOMAIN=${DOMAIN:-} bash "$HERE/cross_dataset.sh" "$METHOD" train "$SOURCE" "$SEED" "$@"
fi
[ "$PART" != train ] || exit 0
CFG=$(config_for "$METHOD" cross_dataset "$SOURCE")
PLACE=shots_$SHOTS/$METHOD/$(name_of "$CFG")
[ -z "${LOADEP:-}" ] || set -- --load-epoch "$LOADEP" "$@"

# test_on TARGET [ARGUMENT]...
test_on() {
    local target=$1 dataset=$1 trained=$SOURCE
    shift
    if [ "$SOURCE" = emoji_groups ]; then
        dataset=$SOURCE trained=${SOURCE}_$DOMAIN
        set -- "$@" DATASET.SOURCE_DOMAINS "['$DOMAIN']" DATASET.TARGET_DOMAINS "['$target']" DATASET.NUM_SHOTS "$SHOTS"
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
for TARGET in $TARGETS; do
    test_on "$TARGET" "$@"
done
