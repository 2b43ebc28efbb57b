#!/usr/bin/env bash
# PromptSRC, cross-dataset, test: DATASET SEED; see scripts/cross_dataset.sh.
CALLED=scripts/promptsrc/xd_test.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../cross_dataset.sh" PromptSRC test "$@"
