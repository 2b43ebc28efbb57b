#!/usr/bin/env bash
# MaPLe, base-to-new, training: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/maple/base2new_train_maple.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" MaPLe train "$@"
