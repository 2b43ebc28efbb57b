#!/usr/bin/env bash
# PromptSRC, base-to-new, training: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/promptsrc/base2new_train.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" PromptSRC train "$@"
