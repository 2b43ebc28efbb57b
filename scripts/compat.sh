#!/usr/bin/env bash
# The launchers of the original repositories under their names: METHOD NAME ARGS..., see docs/launchers.md.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# name          our script       arguments before those given; %M is the method, %N its section below TRAINER
LAUNCHERS="
base2new_train  base2new         %M train
base2new_test   base2new         %M test
xd_train        cross_dataset    %M train
xd_test         cross_dataset    %M test
few_shot        few_shot         %M
main            contexts         %M %N
eval            coop_eval        %M %N
zeroshot        zeroshot         %M
"

known=$(echo "$LAUNCHERS" | awk 'NF {printf "%s ", $1}')
[ $# -ge 2 ] || usage "usage: bash scripts/compat.sh METHOD NAME ARGUMENT..." \
    "  METHOD  folder of the original script, such as maple, or our name of the method" \
    "  NAME    of the original script, with or without _METHOD.sh: $known" \
    "example: bash scripts/compat.sh maple base2new_train_maple.sh caltech101 1"
folder=$1 name=${2%.sh}
name=${name%_"$folder"}
shift 2

# as_written NAME: the method of that name, whatever the case and underscores
as_written() {
    local wanted method
    wanted=$(echo "$1" | tr -d _ | tr '[:upper:]' '[:lower:]')
    [ "$wanted" != zsclip ] || wanted=zeroshotclip
    for method in $(methods); do
        [ "$(echo "$method" | tr '[:upper:]' '[:lower:]')" != "$wanted" ] || printf '%s' "$method"
    done
}
METHOD=$(as_written "$folder")
[ -n "$METHOD" ] || fail "METHOD is '$folder', expected one of $(methods)"
NODE=$(echo "$METHOD" | tr '[:lower:]' '[:upper:]')

# DATASET CFG: zero-shot evaluation
zeroshot() {
    [ $# -ge 3 ] || usage "usage: bash scripts/compat.sh zsclip zeroshot DATASET CFG [FLAG]... [KEY VALUE]..."
    local method=$1 dataset=$2 config=$3
    shift 3
    exec bash "$RUN" "$method" "$config" "$dataset" 1 "$@"
}

# DATASET CFG: what `main` trained on ImageNet (16 shots, 16 vectors, name at the end), tested elsewhere
coop_eval() {
    [ $# -ge 4 ] || usage \
        "usage: [SOURCE=imagenet] [SEEDS=\"1 2 3\"] bash scripts/compat.sh coop eval DATASET CFG [FLAG]... [KEY VALUE]..."
    local method=$1 node=$2 dataset=$3 config=$4 seed kind
    shift 4
    kind=$(name_of "$config")_nctx16_cscFalse_ctpend
    for seed in ${SEEDS:-1 2 3}; do
        OUT=$RUNS/cross_dataset/test/$dataset/shots_16/$method/$kind/seed$seed \
            bash "$RUN" "$method" "$config" "$dataset" "$seed" \
            --eval-only --model-dir "$RUNS/few_shot/${SOURCE:-imagenet}/shots_16/$method/$kind/seed$seed" "$@" \
            "TRAINER.$node.N_CTX" 16 "TRAINER.$node.CSC" False "TRAINER.$node.CLASS_TOKEN_POSITION" end
    done
}

read -r script before <<<"$(echo "$LAUNCHERS" | awk -v name="$name" '$1 == name {$1 = ""; print}')"
[ -n "$script" ] || fail "NAME is '$name', expected one of $known"
before=${before//%M/$METHOD}
before=${before//%N/$NODE}
# shellcheck disable=SC2086  # several words
case $script in
    zeroshot | coop_eval) "$script" $before "$@" ;;
    *) CALLED="scripts/compat.sh $folder $name" exec bash "$HERE/$script.sh" $before "$@" ;;
esac
