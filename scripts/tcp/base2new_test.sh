#!/usr/bin/env bash
# TCP, base-to-new, test: DATASET SEED; see scripts/base2new.sh.
CALLED=scripts/tcp/base2new_test.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../base2new.sh" TCP test "$@"
