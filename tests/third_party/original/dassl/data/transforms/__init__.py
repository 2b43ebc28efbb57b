"""Transforms of the names that the prompt methods use."""

from torchvision import transforms as T

MODES = T.functional.InterpolationMode
INTERPOLATION_MODES = {"bilinear": MODES.BILINEAR, "bicubic": MODES.BICUBIC, "nearest": MODES.NEAREST}


def build_transform(cfg, is_train=True, choices=None):
    chosen, size = cfg.INPUT.TRANSFORMS if choices is None else choices, cfg.INPUT.SIZE
    if cfg.INPUT.NO_TRANSFORM:
        return None
    mode = INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
    if not is_train:
        steps = [T.Resize(max(size), interpolation=mode), T.CenterCrop(size)]
    elif "random_resized_crop" in chosen:
        steps = [T.RandomResizedCrop(size, scale=cfg.INPUT.RRCROP_SCALE, interpolation=mode)]
    else:
        steps = [T.Resize(size, interpolation=mode)]
    if is_train and "random_flip" in chosen:
        steps.append(T.RandomHorizontalFlip())
    steps.append(T.ToTensor())
    if "normalize" in chosen:
        steps.append(T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    return T.Compose(steps)
