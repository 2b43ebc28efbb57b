#!/usr/bin/env bash
# TCP, base-to-new, training: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/tcp/base2new_train.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" TCP train "$@"
