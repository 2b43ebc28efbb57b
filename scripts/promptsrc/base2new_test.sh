#!/usr/bin/env bash
# PromptSRC, base-to-new, test: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/promptsrc/base2new_test.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" PromptSRC test "$@"
