#!/usr/bin/env bash
# Zero-shot CLIP: DATASET CFG, such as: bash scripts/zsclip/zeroshot.sh emoji_groups emoji
. "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
[ $# -ge 2 ] || usage "usage: bash scripts/zsclip/zeroshot.sh DATASET CFG [FLAG]... [KEY VALUE]..."
DATASET=$1 CFG=$2
shift 2
exec bash "$RUN" ZeroshotCLIP "$CFG" "$DATASET" 1 "$@"
