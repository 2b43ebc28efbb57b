#!/usr/bin/env bash
# MaPLe, base-to-new, test: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/maple/base2new_test_maple.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" MaPLe test "$@"
