#!/usr/bin/env bash
# CoOp, base-to-new, training: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/coop/base2new_train.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" CoOp train "$@"
