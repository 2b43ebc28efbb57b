#!/usr/bin/env bash
# CLIPLoRA, few-shot: DATASET SHOTS SEED; see scripts/few_shot.sh.
CALLED=scripts/clip_lora/few_shot.sh \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/../few_shot.sh" CLIPLoRA "$@"
