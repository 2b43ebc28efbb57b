"""Every key of the engine with its default. Methods add their own keys under TRAINER."""

from .node import CfgNode as CN

__all__ = ["default_config"]


def default_config() -> CN:
    """A new config tree with the defaults of Dassl and the keys that this engine adds (marked with +)."""
    cfg = CN()
    cfg.VERSION = 1
    cfg.OUTPUT_DIR = "./output"  # where the run leaves its files
    cfg.RESUME = ""  # folder of a run to continue; OUTPUT_DIR itself is looked at without being named
    cfg.SEED = -1  # 0 and above: a seed; negative: the run is not repeatable
    cfg.USE_CUDA = True  # use a GPU if there is one
    cfg.VERBOSE = True  # print the summary of the data
    cfg.IMPORTS = ()  # + modules to import first, so that their trainers and data sets are registered
    cfg.INPUT = _input()
    cfg.DATASET = _dataset()
    cfg.DATALOADER = _dataloader()
    cfg.MODEL = _model()
    cfg.OPTIM = _optim()
    cfg.TRAIN = _train()
    cfg.TEST = _test()
    cfg.TRAINER = CN()
    cfg.TRAINER.NAME = ""
    return cfg


def _input() -> CN:
    node = CN()
    node.SIZE = (224, 224)  # height, width
    node.INTERPOLATION = "bilinear"  # bilinear | bicubic | nearest
    node.TRANSFORMS = ()  # names; their order is fixed by the engine
    node.NO_TRANSFORM = False  # give images as they are
    node.PIXEL_MEAN = [0.485, 0.456, 0.406]
    node.PIXEL_STD = [0.229, 0.224, 0.225]
    node.TEMPLATE = ""  # + prompt template; "" takes the one of the data set
    node.CROP_PADDING = 4  # random_crop
    node.RRCROP_SCALE = (0.08, 1.0)  # random_resized_crop: share of the image's area
    node.CUTOUT_N = 1  # cutout: number of holes
    node.CUTOUT_LEN = 16  # cutout: side of a hole in pixels
    node.GN_MEAN = 0.0  # gaussian_noise
    node.GN_STD = 0.15
    node.RANDAUGMENT_N = 2  # randaugment: operations per image
    node.RANDAUGMENT_M = 10  # randaugment: strength, 0 to 30
    node.COLORJITTER_B = 0.4  # colorjitter: brightness, contrast, saturation, hue
    node.COLORJITTER_C = 0.4
    node.COLORJITTER_S = 0.4
    node.COLORJITTER_H = 0.1
    node.RGS_P = 0.2  # randomgrayscale: probability
    node.GB_P = 0.5  # gaussian_blur: probability
    node.GB_K = 21  # gaussian_blur: kernel size, odd
    return node


def _dataset() -> CN:
    node = CN()
    node.ROOT = ""  # folder that holds the data sets' folders
    node.NAME = ""  # a registered data set
    node.SOURCE_DOMAINS = ()
    node.TARGET_DOMAINS = ()
    node.NUM_LABELED = -1  # labelled images in all, for semi-supervised learning
    node.NUM_SHOTS = -1  # training images per class; below 1: all
    node.VAL_PERCENT = 0.1
    node.ALL_AS_UNLABELED = False
    node.SUBSAMPLE_CLASSES = "all"  # + all | base | new half of the classes | sets K/N or K-L/N
    node.CACHE_DIR = ""  # + where few-shot picks, image features and images are kept; "" is the user's cache folder
    node.PAIRS = _pairs()
    return node


def _pairs() -> CN:
    """+ images with captions: DATASET.NAME image_text, and data sets for retrieval."""
    node = CN()
    node.SOURCE = ""  # folder with .txt files, table (.csv, .tsv), or shards (.tar) such as "cc3m/{00000..00331}.tar"
    node.IMAGE_COLUMN = ""  # column of a table with the paths of the images; "" = one of the usual names
    node.TEXT_COLUMN = ""  # column with the captions
    node.SEPARATOR = ""  # between the columns; "" = what the header shows
    node.EPOCH_PAIRS = 0  # shards: pairs of an epoch over all processes; 0 = all there are, which are counted first
    node.BUFFER = 2000  # shards: pairs of a worker among which the next is drawn
    node.MAX_DAMAGED = 100  # shards: members of a process that may be skipped in an epoch before the run stops
    node.EVALUATE = ""  # image_text: data set that measures the model, such as ImageNet or Flickr30k
    node.TEST_SPLIT = "test"  # retrieval: test | val, the split that is searched
    return node


def _dataloader() -> CN:
    node = CN()
    node.NUM_WORKERS = 4
    node.PERSISTENT_WORKERS = True  # + workers live as long as their loader, not one epoch each
    node.PIN_MEMORY = True  # + batches in page-locked memory where there is a GPU, which copies them faster
    node.CACHE = "none"  # + none | ram | disk: images decoded, and where possible resized, once; the same pixels
    node.CACHE_RAM_GIB = 4.0  # + most memory of CACHE ram per loader; images beyond it are read every time
    node.K_TRANSFORMS = 1  # views per training image
    node.RETURN_IMG0 = False  # also give the image without augmentation
    node.TRAIN_X = CN()
    node.TRAIN_X.SAMPLER = "RandomSampler"
    node.TRAIN_X.BATCH_SIZE = 32
    node.TRAIN_X.N_DOMAIN = 0  # domains per batch, for RandomDomainSampler
    node.TRAIN_X.N_INS = 16  # images per class, for RandomClassSampler
    node.TRAIN_U = CN()
    node.TRAIN_U.SAME_AS_X = True  # the unlabelled loader follows TRAIN_X
    node.TRAIN_U.SAMPLER = "RandomSampler"
    node.TRAIN_U.BATCH_SIZE = 32
    node.TRAIN_U.N_DOMAIN = 0
    node.TRAIN_U.N_INS = 16
    node.TEST = CN()
    node.TEST.SAMPLER = "SequentialSampler"
    node.TEST.BATCH_SIZE = 32
    return node


def _model() -> CN:
    node = CN()
    node.INIT_WEIGHTS = ""  # checkpoint to start from
    node.BACKBONE = CN()
    node.BACKBONE.NAME = ""
    node.BACKBONE.PRETRAINED = True
    node.HEAD = CN()
    node.HEAD.NAME = ""
    node.HEAD.HIDDEN_LAYERS = ()
    node.HEAD.ACTIVATION = "relu"
    node.HEAD.BN = True
    node.HEAD.DROPOUT = 0.0
    return node


def _optim() -> CN:
    node = CN()
    node.NAME = "adam"  # adam | amsgrad | sgd | rmsprop | radam | adamw | lamb (+)
    node.LR = 0.0003
    node.WEIGHT_DECAY = 5e-4
    node.MOMENTUM = 0.9
    node.SGD_DAMPNING = 0.0
    node.SGD_NESTEROV = False
    node.RMSPROP_ALPHA = 0.99
    node.ADAM_BETA1 = 0.9
    node.ADAM_BETA2 = 0.999
    node.ADAM_EPS = 1e-8  # + added to the denominator by adam, amsgrad, adamw, radam and lamb
    node.LAMB_MAX_NORM = 1.0  # + lamb: longer gradients of the whole model are scaled down to this norm; 0: never
    node.STAGED_LR = False  # other rates for old and new layers
    node.NEW_LAYERS = ()  # layers that get LR; the others get LR * BASE_LR_MULT
    node.BASE_LR_MULT = 0.1
    node.LR_SCHEDULER = "single_step"  # single_step | multi_step | cosine | batch_cosine (+, stepped by batch)
    node.FINAL_LR = 0.0  # + where batch_cosine ends
    node.STEPSIZE = (-1,)  # epochs of the steps; -1 means MAX_EPOCH
    node.GAMMA = 0.1  # factor at each step
    node.ACCUMULATE = 1  # + batches whose mean gradient makes one step
    node.MAX_EPOCH = 10
    node.WARMUP_EPOCH = -1  # epochs of warm-up; below 1: none
    node.WARMUP_TYPE = "linear"  # linear | constant
    node.WARMUP_CONS_LR = 1e-5  # rate during a constant warm-up
    node.WARMUP_MIN_LR = 1e-5  # rate in the first epoch of a linear warm-up
    node.WARMUP_RECOUNT = True  # the schedule proper starts at 0 after the warm-up
    return node


def _train() -> CN:
    node = CN()
    node.CHECKPOINT_FREQ = 0  # epochs between kept checkpoints; 0: only the last
    node.INIT_FROM = ""  # + folder of a trained run whose learned weights are the start
    node.RESUME_FREQ = 1  # + epochs between rolling states to resume from; 0: none
    node.PRINT_FREQ = 10  # batches between lines of the log
    node.PROGRESS = False  # + progress bars even where stderr is no terminal
    # + GiB that a step may take in all; 0: no bound. Rows of a tower that do not fit are computed again in the backward
    # pass, in chunks, with the same result to rounding
    node.MEMORY_BUDGET = 0.0
    node.TEXT_CHUNK = 0  # + sentences of such a chunk by hand; 0: by MEMORY_BUDGET
    node.IMAGE_CHUNK = 0  # + images of such a chunk by hand, each visual mode counted; 0: by MEMORY_BUDGET
    # + attention by one fused kernel where that is faster; False: always written out, which takes more memory
    node.FUSED_ATTENTION = True
    node.COMPILE = False  # + torch.compile of what a method says is worth it: ALIGN's token-level transport
    node.COUNT_ITER = "train_x"  # train_x | train_u | smaller_one: what an epoch of two loaders is
    return node


def _test() -> CN:
    node = CN()
    node.EVALUATOR = "Classification"
    node.PER_CLASS_RESULT = False
    node.COMPUTE_CMAT = False  # save the confusion matrix
    node.PREDICTIONS = False  # + write predictions.csv: path, label, prediction and probability of every test image
    node.NO_TEST = False  # no evaluation at the end
    node.SPLIT = "test"  # test | val
    node.FINAL_MODEL = "last_step"  # last_step | best_val
    # + keep the image features of methods that leave the image tower as it is, below DATASET.CACHE_DIR, and evaluate
    # from them the next time (docs/performance.md)
    node.FEATURE_CACHE = False
    return node
