#!/usr/bin/env bash
# PromptSRC, few-shot: DATASET SHOTS SEED; see scripts/few_shot.sh.
CALLED=scripts/promptsrc/few_shot.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../few_shot.sh" PromptSRC "$@"
