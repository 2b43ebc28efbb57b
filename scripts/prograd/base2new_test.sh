#!/usr/bin/env bash
# ProGrad, base-to-new, test: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/prograd/base2new_test.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" ProGrad test "$@"
