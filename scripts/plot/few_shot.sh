#!/usr/bin/env bash
# PLOT, few-shot: DATASET SHOTS SEED; see scripts/few_shot.sh.
CALLED=scripts/plot/few_shot.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../few_shot.sh" PLOT "$@"
