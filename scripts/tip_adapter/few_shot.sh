#!/usr/bin/env bash
# TipAdapter, few-shot: DATASET SHOTS SEED; see scripts/few_shot.sh.
CALLED=scripts/tip_adapter/few_shot.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../few_shot.sh" TipAdapter "$@"
