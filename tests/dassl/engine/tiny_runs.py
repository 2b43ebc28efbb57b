"""Command lines of tiny runs: three colours, a small network, seconds."""

from pathlib import Path

TINY = str(Path(__file__).with_name("tiny_method.py"))
EPOCHS = 4


def tiny_arguments(root, output, *opts, trainer="Tiny", dataset="TinyImages", seed="1", flags=()):
    """Command line of a tiny run: 4 epochs of 3 batches of 6, cosine with one warm-up epoch."""
    pairs = {
        "DATASET.NAME": dataset,
        "INPUT.SIZE": "(8, 8)",
        "INPUT.TRANSFORMS": "['random_flip', 'normalize']",
        "DATALOADER.NUM_WORKERS": "0",
        "DATALOADER.TRAIN_X.BATCH_SIZE": "6",
        "DATALOADER.TEST.BATCH_SIZE": "5",
        "OPTIM.NAME": "sgd",
        "OPTIM.LR": "0.05",
        "OPTIM.LR_SCHEDULER": "cosine",
        "OPTIM.WARMUP_EPOCH": "1",
        "OPTIM.WARMUP_TYPE": "constant",
        "OPTIM.MAX_EPOCH": str(EPOCHS),
        "TRAIN.PRINT_FREQ": "1",
    }
    required = [
        "--import",
        TINY,
        "--root",
        str(root),
        "--output-dir",
        str(output),
        "--trainer",
        trainer,
        "--seed",
        seed,
    ]
    return [*required, *flags, *(item for pair in pairs.items() for item in pair), *map(str, opts)]
