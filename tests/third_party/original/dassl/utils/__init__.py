"""Registry, meters, files and checkpoints."""

import json
import os
import random
import sys
import warnings

import numpy as np
import torch
from PIL import Image
from torch import nn


class Registry:
    def __init__(self, name):
        self._name, self._obj_map = name, {}

    def register(self, obj=None, force=False):
        def enter(thing):
            if thing.__name__ in self._obj_map and not force:
                raise KeyError(f"{thing.__name__} was already registered in {self._name}")
            self._obj_map[thing.__name__] = thing
            return thing

        return enter if obj is None else enter(obj) and None

    def get(self, name):
        if name not in self._obj_map:
            raise KeyError(f"{name} does not exist in {self._name}")
        return self._obj_map[name]

    def registered_names(self):
        return list(self._obj_map)


def check_availability(requested, available):
    if requested not in available:
        raise ValueError(f"The requested one is expected to belong to {available}, but got [{requested}]")


class AverageMeter:
    def __init__(self, ema=False):
        self.ema = ema
        self.reset()

    def reset(self):
        self.val = self.avg = self.sum = self.count = 0

    def update(self, val, n=1):
        self.val = val.item() if isinstance(val, torch.Tensor) else val
        self.sum += self.val * n
        self.count += n
        self.avg = 0.9 * self.avg + 0.1 * self.val if self.ema else self.sum / self.count


class MetricMeter:
    def __init__(self, delimiter=" "):
        self.meters, self.delimiter = {}, delimiter

    def update(self, input_dict):
        if input_dict is not None and not isinstance(input_dict, dict):
            raise TypeError("Input to MetricMeter.update() must be a dictionary")
        for name, value in (input_dict or {}).items():
            self.meters.setdefault(name, AverageMeter()).update(value)

    def __str__(self):
        return self.delimiter.join(f"{name} {one.val:.4f} ({one.avg:.4f})" for name, one in self.meters.items())


def set_random_seed(seed):
    for start in (random.seed, np.random.seed, torch.manual_seed, torch.cuda.manual_seed_all):
        start(seed)


def collect_env_info():
    return f"PyTorch version: {torch.__version__}"


class _Tee:
    def __init__(self, path):
        self.console, self.file = sys.stdout, open(path, "w")  # noqa: SIM115 - open as long as the process

    def write(self, text):
        self.console.write(text)
        self.file.write(text)

    def flush(self):
        self.console.flush()
        self.file.flush()


def setup_logger(output=None):
    if output is not None:
        mkdir_if_missing(output)
        sys.stdout = _Tee(os.path.join(output, "log.txt"))


def mkdir_if_missing(dirname):
    os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath):
    if not os.path.isfile(fpath):
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return os.path.isfile(fpath)


def read_json(fpath):
    with open(fpath) as file:
        return json.load(file)


def write_json(obj, fpath):
    mkdir_if_missing(os.path.dirname(fpath))
    with open(fpath, "w") as file:
        json.dump(obj, file, indent=4)


def listdir_nohidden(path, sort=False):
    found = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(found) if sort else found


def read_image(path):
    return Image.open(path).convert("RGB")


def tolist_if_not(x):
    return x if isinstance(x, list) else [x]


def count_num_param(model=None, params=None):
    if model is None and params is None:
        raise ValueError("model and params must provide at least one.")
    return sum(one.numel() for one in (model.parameters() if model is not None else params))


def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    mkdir_if_missing(save_dir)
    if remove_module_from_keys:
        state["state_dict"] = {name.removeprefix("module."): value for name, value in state["state_dict"].items()}
    name = model_name or f"model.pth.tar-{state['epoch']}"
    for file in (name, "model-best.pth.tar") if is_best else (name,):
        torch.save(state, os.path.join(save_dir, file))
    with open(os.path.join(save_dir, "checkpoint"), "w") as file:
        file.write(f"{name}\n")


def load_checkpoint(fpath):
    if fpath is None:
        raise ValueError("File path is None")
    if not os.path.exists(fpath):
        raise FileNotFoundError(f'File is not found at "{fpath}"')
    return torch.load(fpath, map_location=None if torch.cuda.is_available() else "cpu", weights_only=False)


def resume_from_checkpoint(fdir, model, optimizer=None, scheduler=None):
    with open(os.path.join(fdir, "checkpoint")) as file:
        checkpoint = load_checkpoint(os.path.join(fdir, file.readline().strip()))
    model.load_state_dict(checkpoint["state_dict"])
    for part, name in ((optimizer, "optimizer"), (scheduler, "scheduler")):
        if part is not None and name in checkpoint:
            part.load_state_dict(checkpoint[name])
    return checkpoint["epoch"]


def load_pretrained_weights(model, weight_path):
    checkpoint = load_checkpoint(weight_path)
    given = checkpoint.get("state_dict", checkpoint)
    own = model.state_dict()
    given = {name.removeprefix("module."): value for name, value in given.items()}
    fitting = {name: value for name, value in given.items() if name in own and own[name].size() == value.size()}
    if not fitting:
        warnings.warn(f"Cannot load {weight_path} (check the key names manually)", stacklevel=2)
    model.load_state_dict({**own, **fitting})


def open_specified_layers(model, open_layers):
    for name, module in model.named_children():
        module.train(name in tolist_if_not(open_layers))
        nn.Module.requires_grad_(module, name in tolist_if_not(open_layers))
