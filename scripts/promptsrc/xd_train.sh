#!/usr/bin/env bash
# PromptSRC, cross-dataset, training: [SOURCE] SEED; see scripts/cross_dataset.sh.
CALLED=scripts/promptsrc/xd_train.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" PromptSRC train "$@"
