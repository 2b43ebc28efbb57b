#!/usr/bin/env bash
# ALIGN, or METHOD=NAME, base-to-new, training: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/align/base2new_train.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" "${METHOD:-ALIGN}" train "$@"
