#!/usr/bin/env bash
# CoOp, few-shot, with the arguments of the released script: DATASET CFG CTP NCTX SHOTS CSC; see scripts/contexts.sh.
CALLED=scripts/coop/main.sh exec bash "$(dirname "${BASH_SOURCE[0]}")/../contexts.sh" CoOp COOP "$@"
