"""Options of short runs: of the methods for a tiny CLIP of three layers, and of the data."""

from pathlib import Path

import torch

from clip import CLIP


def tiny_clip(side: int) -> CLIP:
    """A CLIP of three layers with random weights, always the same, for images of `side` pixels."""
    torch.manual_seed(0)
    text = {"context_length": 77, "vocab_size": 2048, "transformer_width": 32, "transformer_heads": 2}
    image = {"image_resolution": side, "vision_layers": 3, "vision_width": 64, "vision_patch_size": 16}
    return CLIP(embed_dim=32, **image, vision_heads=2, **text, transformer_layers=3)


def short_run(folder: Path, backbone: str | Path, **changed: object) -> list[str]:
    """KEY VALUE pairs of a run on one style of EmojiGroups, with its caches in `folder` and other options `changed`."""
    settings = {
        "DATASET.NAME": "EmojiGroups",
        "DATASET.NUM_SHOTS": 1,
        "DATASET.SOURCE_DOMAINS": "('openmoji',)",
        "DATASET.TARGET_DOMAINS": "('openmoji',)",
        "DATASET.CACHE_DIR": folder / "cache",
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 16,
        "INPUT.SIZE": "(64, 64)",
        "INPUT.TRANSFORMS": "('normalize',)",
        "MODEL.BACKBONE.NAME": backbone,
        "OPTIM.NAME": "sgd",
        "OPTIM.LR": 0.02,
        **changed,
    }
    return [str(item) for pair in settings.items() for item in pair]


# Options of each method that make its run short; a method without an entry runs with its defaults.
SHORT = {
    "ProGrad": ["TRAINER.PROGRAD.N_CTX", 4],
    "TCP": ["TRAINER.TCP.BLOCK", 2],
    "CoCoOp": ["TRAINER.COCOOP.N_CTX", 2, "TRAINER.COCOOP.CHUNK_ROWS", 1200, "DATASET.SUBSAMPLE_CLASSES", "base"],
    "CoOp": ["TRAINER.COOP.N_CTX", 4],
    "ALIGN": ["TRAINER.ALIGN.PROMPT_DEPTH", 2, "TRAINER.ALIGN.VISION_PROMPT_NUMBER", 2]
    + ["TRAINER.ALIGN.TEXT_PROMPT_NUMBER", 2],
    "CoOpDePT": ["TRAINER.COOP.N_CTX", 4],
    "MaPLeDePT": ["TRAINER.MAPLE.PROMPT_DEPTH", 2],
    "PromptKD": ["TRAINER.PROMPTKD.PROMPT_DEPTH", 2, "OPTIM.LR", 0.002],
    "LAMM": ["OPTIM.LR", 0.002],
    "CoOpLAMM": ["OPTIM.LR", 0.002],
    "CoPrompt": ["TRAINER.COPROMPT.PROMPT_DEPTH", 2],
    "SkipTuning": ["TRAINER.SKIP.START_LAYER", 1],
    "VPT": ["TRAINER.VPT.PROMPT_DEPTH_VISION", 2],
    "IVLP": ["TRAINER.IVLP.PROMPT_DEPTH_TEXT", 3, "TRAINER.IVLP.PROMPT_DEPTH_VISION", 2],
    "MaPLe": ["TRAINER.MAPLE.PROMPT_DEPTH", 2],
    "MaPLeLAMM": ["TRAINER.MAPLE.PROMPT_DEPTH", 2, "OPTIM.LR", 0.002],
    "ALIGNLAMM": ["TRAINER.ALIGN.PROMPT_DEPTH", 2, "TRAINER.ALIGN.VISION_PROMPT_NUMBER", 2]
    + ["TRAINER.ALIGN.TEXT_PROMPT_NUMBER", 2, "OPTIM.LR", 0.002],
    "MMRL": ["TRAINER.MMRL.LAYER", 2, "TRAINER.MMRL.REP_DIM", 16],
    "PromptSRC": ["TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 2, "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 2],
    "PLOT": ["TRAINER.PLOT.N_CTX", 4, "TRAINER.PLOT.N", 2],
    "PLOTPP": ["TRAINER.PLOTPP.M", 2],
    "CLIPAdapter": ["TRAINER.CLIP_ADAPTER.RATIO", 0.8, "OPTIM.LR", 0.2],
    "TipAdapter": ["TRAINER.TIP_ADAPTER.AUGMENT_EPOCH", 2, "TRAINER.TIP_ADAPTER.SEARCH_STEP", "(5,5)"],
    "UTA": ["TRAINER.UTA.LAYERS", 2, "TRAINER.UTA.WIDTH", 64, "OPTIM.NAME", "adamw", "OPTIM.LR", 0.002],
    "CLAP": ["TRAINER.CLAP.VIEWS", 2],
    "MMA": ["TRAINER.MMA.BLOCKS", 2, "TRAINER.MMA.SCALE", 0.1],
    "APE": ["TRAINER.APE.AUGMENT_EPOCH", 2, "TRAINER.APE.SEARCH_STEP", "(3,3,2)"],
    "TPT": ["DATASET.SUBSAMPLE_CLASSES", "base"],
    "LPPP": ["TRAINER.LPPP.EPOCHS", 20],
    "LinearProbe": ["TRAINER.LINEAR_PROBE.ROUNDS", 2, "TRAINER.LINEAR_PROBE.MAX_ITER", 50],
}
