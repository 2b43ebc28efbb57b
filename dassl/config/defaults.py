"""Every key of the engine: default, allowed values and meaning. Methods declare their own keys under TRAINER.

+ marks keys that Dassl does not have.
"""

from __future__ import annotations

import re
from typing import Any

from .node import CfgNode
from .options import Option, declare

__all__ = ["SUBSETS", "TRANSFORMS", "default_config"]

TRANSFORMS = (
    "random_flip",
    "random_resized_crop",
    "normalize",
    "instance_norm",
    "random_crop",
    "random_translation",
    "center_crop",
    "cutout",
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment",
    "gaussian_noise",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
)
SAMPLERS = ("RandomSampler", "SequentialSampler", "RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler")
SUBSETS = re.compile(r"all|base|new|[1-9]\d*(-[1-9]\d*)?/[1-9]\d*")


def _probability(default: float, of: str) -> Option:
    return Option(default, f"{of}: probability", low=0, high=1)


def _jitter(default: float, of: str, high: float | None = None) -> Option:
    return Option(default, f"colorjitter: strength of {of}", low=0, high=high)


INPUT: dict[str, Any] = {
    "SIZE": Option((224, 224), "height, width; left out, the backbone's", low=1, length=2, kind=int),
    "INTERPOLATION": Option("bilinear", "left out, the backbone's", choices=("bilinear", "bicubic", "nearest")),
    "RESIZE": Option(
        "shortest",
        "of test images: the shorter side, then a center crop, or `squash` both sides; left out, the backbone's",
        choices=("shortest", "squash"),
    ),
    "TRANSFORMS": Option((), "augmentations; their order is fixed by the engine", choices=TRANSFORMS),
    "NO_TRANSFORM": Option(False, "give images as they are; for custom trainers with their own loader"),
    "PIXEL_MEAN": Option([0.485, 0.456, 0.406], "left out, the backbone's", length=3, kind=float),
    "PIXEL_STD": Option([0.229, 0.224, 0.225], "left out, the backbone's", above=0, length=3, kind=float),
    "TEMPLATE": Option("", '+ prompt template; "" takes the one of the data set'),
    "CROP_PADDING": Option(4, "random_crop: pixels", low=0),
    "RRCROP_SCALE": Option(
        (0.08, 1.0),
        "random_resized_crop: share of the image's area, smallest and largest",
        kind=float,
        length=2,
        rule=(lambda value: 0 < value[0] <= value[1] <= 1, "two numbers above 0 to 1, the smaller one first"),
    ),
    "CUTOUT_N": Option(1, "cutout: number of holes", low=1),
    "CUTOUT_LEN": Option(16, "cutout: side of a hole in pixels", low=1),
    "GN_MEAN": Option(0.0, "gaussian_noise: mean"),
    "GN_STD": Option(0.15, "gaussian_noise: standard deviation", low=0),
    "RANDAUGMENT_N": Option(2, "randaugment: operations per image", low=1, high=100),
    "RANDAUGMENT_M": Option(10, "randaugment: strength", low=0, high=30),
    "COLORJITTER_B": _jitter(0.4, "brightness"),
    "COLORJITTER_C": _jitter(0.4, "contrast"),
    "COLORJITTER_S": _jitter(0.4, "saturation"),
    "COLORJITTER_H": _jitter(0.1, "hue", 0.5),
    "RGS_P": _probability(0.2, "randomgrayscale"),
    "GB_P": _probability(0.5, "gaussian_blur"),
    "GB_K": Option(
        21,
        "gaussian_blur: kernel size",
        low=1,
        rule=(lambda value: value % 2 == 1, "an odd whole number, 1 or more"),
    ),
}

# + images with captions: DATASET.NAME image_text, and data sets for retrieval
PAIRS: dict[str, Any] = {
    "SOURCE": Option(
        "", 'folder with .txt files, table (.csv, .tsv), or shards (.tar) such as "cc3m/{00000..00331}.tar"'
    ),
    "IMAGE_COLUMN": Option("", 'column of a table with the paths of the images; "" = one of the usual names'),
    "TEXT_COLUMN": Option("", "column with the captions"),
    "SEPARATOR": Option("", 'between the columns; "" = what the header shows'),
    "EPOCH_PAIRS": Option(0, "shards: pairs of an epoch over all processes; 0 = all, which are counted first", low=0),
    "BUFFER": Option(2000, "shards: pairs of a worker among which the next is drawn", low=1),
    "MAX_DAMAGED": Option(
        100, "shards: members of a process that may be skipped in an epoch before the run stops", low=0
    ),
    "EVALUATE": Option("", "image_text: data set that measures the model, such as ImageNet or Flickr30k"),
    "TEST_SPLIT": Option("test", "retrieval: the split that is searched", choices=("test", "val")),
}

DATASET: dict[str, Any] = {
    "ROOT": Option("", "folder that holds the data sets' folders"),
    "NAME": Option("", "a registered data set"),
    "SOURCE_DOMAINS": Option((), "domains to train on", kind=str),
    "TARGET_DOMAINS": Option((), "domains to test on", kind=str),
    "NUM_LABELED": Option(-1, "labelled images in all, for semi-supervised learning; -1: all", low=-1),
    "NUM_SHOTS": Option(-1, "training images per class; below 1: all", low=-1),
    "PICKS": Option(
        "drawn",
        "+ few-shot images: drawn by SEED, or the released lists of 2SFS (seeds 1 to 3; 1, 2, 4, 8 or 16 shots)",
        choices=("drawn", "2sfs"),
    ),
    "VAL_PERCENT": Option(0.1, "share of the training images for validation", low=0, below=1),
    "ALL_AS_UNLABELED": Option(False, "labelled images serve as unlabelled ones too"),
    "SUBSAMPLE_CLASSES": Option(
        "all",
        "+ all, base or new half of the classes, or sets K/N or K-L/N",
        rule=(SUBSETS.fullmatch, "all, base, new, or sets such as 2/3 or 1-2/3"),
    ),
    "DESCRIPTIONS": Option((), "+ JSON files of sentences about each class, for methods that read them", kind=str),
    "CACHE_DIR": Option(
        "", '+ where few-shot picks, image features and images are kept; "" is the user\'s cache folder'
    ),
    "PAIRS": PAIRS,
}


def _loader() -> dict[str, Any]:
    return {
        "SAMPLER": Option("RandomSampler", "order of the images", choices=SAMPLERS),
        "BATCH_SIZE": Option(32, "images per batch", low=1),
        "N_DOMAIN": Option(0, "domains per batch, for RandomDomainSampler", low=0),
        "N_INS": Option(16, "images per class, for RandomClassSampler", low=1),
    }


DATALOADER: dict[str, Any] = {
    "NUM_WORKERS": Option(4, "processes that load images; 0: none but the main one", low=0),
    "PERSISTENT_WORKERS": Option(True, "+ workers live as long as their loader, not one epoch each"),
    "PIN_MEMORY": Option(True, "+ batches in page-locked memory where there is a GPU, which copies them faster"),
    "CACHE": Option(
        "none",
        "+ images decoded, and where possible resized, once; the same pixels",
        choices=("none", "ram", "disk"),
    ),
    "CACHE_RAM_GIB": Option(4.0, "+ most memory of CACHE ram per loader; images beyond it are read every time", low=0),
    "K_TRANSFORMS": Option(1, "views per training image", low=1),
    "RETURN_IMG0": Option(False, "also give the image without augmentation"),
    "TRAIN_X": _loader(),
    "TRAIN_U": {"SAME_AS_X": Option(True, "the unlabelled loader follows TRAIN_X"), **_loader()},
    "TEST": {
        "SAMPLER": Option("SequentialSampler", "order of the images", choices=SAMPLERS),
        "BATCH_SIZE": Option(32, "images per batch", low=1),
    },
}

MODEL: dict[str, Any] = {
    "INIT_WEIGHTS": Option("", "checkpoint to start from"),
    "BACKBONE": {
        "NAME": Option("", "name of a CLIP or of a network, or path of its weights"),
        "PRETRAINED": Option(True, "networks of torchvision: start from published weights"),
    },
    "HEAD": {
        "NAME": Option("", "head of the network"),
        "HIDDEN_LAYERS": Option((), "widths of the head's layers", low=1, kind=int),
        "ACTIVATION": Option("relu", "of the head"),
        "BN": Option(True, "batch norms in the head"),
        "DROPOUT": Option(0.0, "rate in the head", low=0, below=1),
    },
}

OPTIM: dict[str, Any] = {
    "NAME": Option("adam", "lamb (+) too", choices=("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw", "lamb")),
    "LR": Option(0.0003, "learning rate", low=0),
    "WEIGHT_DECAY": Option(5e-4, "decay of the learned parameters", low=0),
    "MOMENTUM": Option(0.9, "of sgd and rmsprop", low=0, below=1),
    "SGD_DAMPNING": Option(0.0, "of sgd", low=0, high=1),
    "SGD_NESTEROV": Option(False, "Nesterov's momentum"),
    "RMSPROP_ALPHA": Option(0.99, "smoothing of rmsprop", low=0, below=1),
    "ADAM_BETA1": Option(0.9, "decay of the first moment", low=0, below=1),
    "ADAM_BETA2": Option(0.999, "decay of the second moment", low=0, below=1),
    "ADAM_EPS": Option(1e-8, "+ added to the denominator by adam, amsgrad, adamw, radam and lamb", above=0),
    "LAMB_MAX_NORM": Option(
        1.0, "+ lamb: longer gradients of the whole model are scaled down to this norm; 0: never", low=0
    ),
    "STAGED_LR": Option(False, "other rates for old and new layers"),
    "NEW_LAYERS": Option((), "layers that get LR; the others get LR * BASE_LR_MULT", kind=str),
    "BASE_LR_MULT": Option(0.1, "see NEW_LAYERS", low=0),
    "LR_SCHEDULER": Option(
        "single_step",
        "stepped by epoch; batch_cosine and batch_linear (+) by batch",
        choices=("single_step", "multi_step", "cosine", "batch_cosine", "batch_linear"),
    ),
    "FINAL_LR": Option(0.0, "+ where schedules by batch end", low=0),
    "STEPSIZE": Option(
        (-1,),
        "epochs of the steps; -1 means MAX_EPOCH",
        kind=int,
        rule=(
            lambda value: len(value) > 0 and all(step >= -1 for step in value),
            "at least one whole number, each -1 or more",
        ),
    ),
    "GAMMA": Option(0.1, "factor at each step", above=0),
    "ACCUMULATE": Option(1, "+ batches whose mean gradient makes one step", low=1),
    "MAX_EPOCH": Option(10, "epochs of the training", low=1),
    "WARMUP_EPOCH": Option(-1, "epochs of warm-up, at most MAX_EPOCH; below 1: none", low=-1),
    "WARMUP_TYPE": Option("linear", "rise of the rate, or one small rate", choices=("linear", "constant")),
    "WARMUP_CONS_LR": Option(1e-5, "rate during a constant warm-up", low=0),
    "WARMUP_MIN_LR": Option(1e-5, "rate in the first epoch of a linear warm-up", low=0),
    "WARMUP_RECOUNT": Option(True, "the schedule proper starts at 0 after the warm-up"),
}

TRAIN: dict[str, Any] = {
    "CHECKPOINT_FREQ": Option(0, "epochs between kept checkpoints; 0 or less: only the last"),
    "INIT_FROM": Option("", "+ folder of a trained run whose learned weights are the start"),
    "RESUME_FREQ": Option(1, "+ epochs between rolling states to resume from; 0: none", low=0),
    "OTHER_MACHINE": Option(
        False,
        "+ go on although precision, kind of device, torch or workers of shards are not those the run began with",
    ),
    "PRINT_FREQ": Option(10, "batches between lines of the log", low=1),
    "PROGRESS": Option(False, "+ progress bars even where stderr is not a terminal"),
    "MEMORY_BUDGET": Option(
        0.0,
        "+ GiB that a step may take in all; 0: no bound. Rows of a tower that do not fit are computed again in the "
        "backward pass, in chunks, with the same result to rounding",
        low=0,
    ),
    "TEXT_CHUNK": Option(0, "+ sentences of such a chunk by hand; 0: by MEMORY_BUDGET", low=0),
    "IMAGE_CHUNK": Option(0, "+ images of such a chunk by hand, each visual mode counted; 0: by MEMORY_BUDGET", low=0),
    "FUSED_ATTENTION": Option(
        True, "+ attention by one fused kernel where that is faster; False: always written out, which takes more memory"
    ),
    "TF32": Option(False, "+ float32 products on a GPU in TF32, 10 bits of mantissa, those of transport included"),
    "COUNT_ITER": Option(
        "train_x", "batches of an epoch of two loaders", choices=("train_x", "train_u", "smaller_one")
    ),
}

TEST: dict[str, Any] = {
    "EVALUATOR": Option("Classification", "a registered evaluator, such as Retrieval"),
    "PER_CLASS_RESULT": Option(False, "accuracy of every class"),
    "COMPUTE_CMAT": Option(False, "save the confusion matrix"),
    "PREDICTIONS": Option(
        False, "+ write predictions.csv: path, label, prediction and probability of every test image"
    ),
    "NO_TEST": Option(False, "no evaluation at the end"),
    "SPLIT": Option("test", "the images of the evaluation", choices=("test", "val")),
    "CALIBRATE": Option(
        False, "+ fit a temperature to the validation images; probabilities under it are those of `predict`"
    ),
    "OOD_DATASETS": Option(
        (), "+ data sets whose test images belong to none of the classes: AUROC and FPR95 of finding them", kind=str
    ),
    "JOINT": Option(
        False, "+ accuracy of base and of new classes, each among all classes (with SUBSAMPLE_CLASSES all)"
    ),
    "VIEWS": Option(0, "+ random training transforms of every test image, for methods that adapt to it", low=0),
    "FINAL_MODEL": Option("last_step", "the checkpoint that is tested at the end", choices=("last_step", "best_val")),
    "FEATURE_CACHE": Option(
        False,
        "+ keep the image features of methods that leave the image tower as it is, below DATASET.CACHE_DIR, and "
        "evaluate from them the next time (docs/performance.md)",
    ),
}

OPTIONS: dict[str, Any] = {
    "VERSION": 1,
    "OUTPUT_DIR": Option("./output", "where the run leaves its files"),
    "RESUME": Option("", "folder of a run to continue; OUTPUT_DIR itself is looked at without being named"),
    "SEED": Option(-1, "0 and above: a seed; negative: the run is not repeatable", high=2**32 - 1),
    "USE_CUDA": Option(True, "use a GPU if there is one"),
    "VERBOSE": Option(True, "print the summary of the data"),
    "IMPORTS": Option((), "+ modules to import first, so that their trainers and data sets are registered", kind=str),
    "INPUT": INPUT,
    "DATASET": DATASET,
    "DATALOADER": DATALOADER,
    "MODEL": MODEL,
    "OPTIM": OPTIM,
    "TRAIN": TRAIN,
    "TEST": TEST,
    "TRAINER": {"NAME": ""},
}


def default_config() -> CfgNode:
    """A new config tree with the defaults of Dassl and the keys that this engine adds."""
    return declare("", OPTIONS)
