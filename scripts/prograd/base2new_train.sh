#!/usr/bin/env bash
# ProGrad, base-to-new, training: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/prograd/base2new_train.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" ProGrad train "$@"
