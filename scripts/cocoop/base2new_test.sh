#!/usr/bin/env bash
# CoCoOp, base-to-new, test: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/cocoop/base2new_test.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" CoCoOp test "$@"
