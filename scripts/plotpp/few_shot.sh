#!/usr/bin/env bash
# PLOTPP, few-shot: DATASET SHOTS SEED; see scripts/few_shot.sh.
CALLED=scripts/plotpp/few_shot.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../few_shot.sh" PLOTPP "$@"
