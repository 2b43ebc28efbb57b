#!/usr/bin/env bash
# PLOT, few-shot, with the arguments of the released script: DATASET CFG CTP NCTX SHOTS CSC; see scripts/contexts.sh.
CALLED=scripts/plot/main.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../contexts.sh" PLOT PLOT "$@"
