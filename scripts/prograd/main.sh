#!/usr/bin/env bash
# ProGrad, few-shot, with the arguments of the released script: DATASET CFG CTP NCTX SHOTS CSC; see scripts/contexts.sh.
CALLED=scripts/prograd/main.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../contexts.sh" ProGrad PROGRAD "$@"
