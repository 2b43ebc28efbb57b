#!/usr/bin/env bash
# Few-shot runs of a method with learned contexts, seeds 1, 2 and 3, one folder per kind of context.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
CALLED=${CALLED:-scripts/contexts.sh METHOD NODE}
[ $# -ge 8 ] || usage "usage: [SEEDS=\"1 2 3\"] bash $CALLED DATASET CFG CTP NCTX SHOTS CSC [FLAG]... [KEY VALUE]..." \
    "  CFG   config of the method; it stands before the variable CFG" \
    "  CTP   position of the class name: end, middle or front" \
    "  NCTX  number of context vectors" \
    "  CSC   one context per class: True or False"
METHOD=$1 NODE=$2 DATASET=$3 CFG=$4 CTP=$5 NCTX=$6 SHOTS=$7 CSC=$8
shift 8
check_method "$METHOD"
number NCTX "$NCTX"
number SHOTS "$SHOTS"
case $CTP in end | middle | front) ;; *) fail "CTP is '$CTP', expected end, middle or front" ;; esac
case $CSC in True | False) ;; *) fail "CSC is '$CSC', expected True or False" ;; esac
for SEED in ${SEEDS:-1 2 3}; do
    number SEED "$SEED"
    OUT=$RUNS/few_shot/$DATASET/shots_$SHOTS/$METHOD/$(name_of "$CFG")_nctx${NCTX}_csc${CSC}_ctp$CTP/seed$SEED \
        bash "$RUN" "$METHOD" "$CFG" "$DATASET" "$SEED" "$@" DATASET.NUM_SHOTS "$SHOTS" \
        "TRAINER.$NODE.N_CTX" "$NCTX" "TRAINER.$NODE.CSC" "$CSC" "TRAINER.$NODE.CLASS_TOKEN_POSITION" "$CTP"
done
