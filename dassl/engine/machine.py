"""Properties of the machine that a result depends on: settled when a run begins, and kept as long as it lives.

Precision `auto` becomes what this machine is fast in, once: config.yaml has the answer, and a run that goes on keeps it
wherever it goes on. A run with other properties than it began with is refused, as its result would be of neither.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from yacs.config import CfgNode

from dassl.utils import distributed
from dassl.utils.yaml_files import load_yaml

from .precision import auto_precision
from .status import CONFIG, option_nodes, resume_file, run_state

logger = logging.getLogger(__name__)

ALLOW = "TRAIN.OTHER_MACHINE"
DECISIVE = ("precision", "tf32", "device", "torch", "processes", "workers")
"""Properties that a result depends on by more than rounding in the order of sums, which threads change."""


@contextmanager
def cuda_calls(allowed: bool) -> Iterator[None]:
    """Within, and unless `allowed`, `.cuda()` of tensors and modules returns them where they are: for imported code."""
    own = torch.Tensor.cuda, torch.nn.Module.cuda
    if not allowed:
        for kind in (torch.Tensor, torch.nn.Module):
            kind.cuda = lambda self, *args, **options: self  # type: ignore[assignment, method-assign, attr-defined]
    try:
        yield
    finally:
        torch.Tensor.cuda, torch.nn.Module.cuda = own  # type: ignore[method-assign]


def machine_of(trainer: Any) -> dict[str, Any]:
    """The properties under which a trainer computes; None: `workers` that change nothing, no TF32."""
    loader = trainer.train_loader_x
    return {
        "precision": trainer.precision.name,
        "tf32": (trainer.device.type == "cuda" and trainer.cfg.TRAIN.TF32) or None,
        "device": trainer.device.type,
        "torch": str(torch.__version__),
        "processes": distributed.get_world_size(),
        "workers": max(1, loader.workers) if getattr(loader, "workers_matter", False) else None,
        "threads": torch.get_num_threads(),
    }


def set_backends(cfg: CfgNode) -> None:
    """Set torch's global switches for a run: fused attention, the search for convolutions, and TF32, on GPUs alone."""
    for fused in ("flash", "mem_efficient", "cudnn"):  # of CPUs too, in spite of the name
        getattr(torch.backends.cuda, f"enable_{fused}_sdp")(cfg.TRAIN.FUSED_ATTENTION)
    if cfg.USE_CUDA and torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = cfg.TRAIN.TF32
        torch.set_float32_matmul_precision("high" if cfg.TRAIN.TF32 else "highest")


def settle_precision(cfg: CfgNode, directory: str | Path) -> CfgNode:
    """The config with PREC auto resolved: as the run in the folder, or in RESUME, began, else for this machine.

    Options of other trainers stay; fp32, amp ... asked for by name stay too.
    """
    nodes = [node for node in sorted(option_nodes(cfg.TRAINER.NAME)) if cfg.TRAINER[node].get("PREC") == "auto"]
    if not nodes:
        return cfg
    begun = distributed.broadcast_object(_begun(directory) or (_begun(cfg.RESUME) if cfg.RESUME else {}))
    device = torch.device("cuda" if cfg.USE_CUDA and torch.cuda.is_available() else "cpu")
    settled = cfg.clone()
    settled.defrost()
    for node in nodes:
        known = begun.get(node)
        name = known if known in ("fp32", "amp", "bf16") else distributed.broadcast_object(auto_precision(device))
        settled.TRAINER[node].PREC = name
    settled.freeze()
    return settled


def _begun(directory: str | Path) -> dict[str, str]:
    """PREC of every node in the config of a run that has something to lose; damage is reported by other checks."""
    path = Path(directory)
    if not (resume_file(path).is_file() or run_state(path) == "done" or any(path.glob("*/model*.pth.tar*"))):
        return {}
    try:
        content = load_yaml((path / CONFIG).read_text(encoding="utf-8", errors="replace"))
        return {node: str(options["PREC"]) for node, options in content["TRAINER"].items() if "PREC" in options}
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        return {}


def check_same_machine(path: Path, before: dict[str, Any], now: dict[str, Any], allow: bool) -> None:
    """Check that a run goes on under the properties it began with.

    Raises:
        ValueError: it does not, and TRAIN.OTHER_MACHINE does not allow it; the message has both values.
    """
    known = [name for name in DECISIVE if name in before and name in now]
    changed = [f"{name} {before[name]} -> {now[name]}" for name in known if before[name] != now[name]]
    if changed and not allow:
        raise ValueError(
            f'"{path}" began on another kind of machine ({", ".join(changed)}), which changes its result; go on where '
            f"it began, or delete it to train from the beginning, or allow it by {ALLOW} True, which is noted in the "
            "result"
        )
    if changed:
        logger.warning("%s goes on on another kind of machine: %s", path, ", ".join(changed))
    elif before.get("threads", now["threads"]) != now["threads"]:
        logger.warning(
            "%s goes on with %d CPU threads and began with %d: sums are rounded in another order",
            *(path, now["threads"], before["threads"]),
        )


def decisive(machine: dict[str, Any]) -> dict[str, Any]:
    """The properties that results must share to be averaged without a mark."""
    return {name: machine.get(name) for name in DECISIVE if machine.get(name) is not None}


def machine_differences(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The properties in which results were not made alike, one text each: "precision: amp in a, b; fp32 in c".

    Args:
        results: content of result.json by the name of the run; those from before machines were noted have a few.
    """
    found = []
    for name in DECISIVE:
        places: dict[str, list[str]] = {}
        for run, result in results.items():
            noted = result.get("machine")
            machines = [*(result.get("earlier_machines") or []), result if noted is None else noted]
            values = [machine.get(name) for machine in machines if isinstance(machine, Mapping)]
            text = ", then ".join(dict.fromkeys(str(value).removesuffix(":0") for value in values if value is not None))
            if text:
                places.setdefault(text, []).append(run)
        if len(places) > 1 or any(", then " in text for text in places):
            shown = (f"{text} in {', '.join(runs[:3])}{' ...' * (len(runs) > 3)}" for text, runs in places.items())
            found.append(f"{name}: {'; '.join(shown)}")
    return found
