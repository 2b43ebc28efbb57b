#!/usr/bin/env bash
# IVLP, base-to-new, training: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/ivlp/base2new_train_ivlp.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" IVLP train "$@"
