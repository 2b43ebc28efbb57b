"""One of two processes that compares every method's loss and gradients with those of one process, for the tests."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from plain_towers import trainer_of
from torch.nn.parallel import DistributedDataParallel

import clip
import train  # noqa: F401  registers the trainers
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import distributed
from trainers import promptsrc
from trainers.base import PromptTrainer

NAMES = ["cat", "golden_retriever", "Boeing 747-400", "yin_yang", "a"]
LABELS = torch.tensor([0, 3, 1, 4, 2, 2])


def methods():
    """Few-shot methods that learn by gradient steps: what the others learn is made in one go, from all features."""
    classes = {name: TRAINER_REGISTRY.get(name) for name in sorted(TRAINER_REGISTRY.registered_names())}
    return {name: cls for name, cls in classes.items() if issubclass(cls, PromptTrainer) and cls.by_steps}


def tiny():
    torch.manual_seed(0)
    text = {"context_length": 77, "vocab_size": 2048, "transformer_width": 48, "transformer_heads": 2}
    image = {"image_resolution": 32, "vision_layers": 4, "vision_width": 64, "vision_patch_size": 8}
    return clip.CLIP(embed_dim=32, **image, **text, transformer_layers=4).eval().requires_grad_(False)


def built(cls, model, seed):
    torch.manual_seed(seed)
    options = {}
    for key, value in {
        "PROMPT_DEPTH": 3,
        "PROMPT_DEPTH_TEXT": 3,
        "PROMPT_DEPTH_VISION": 3,
        "BLOCK": 2,
        "LAYER": 3,
        "START_LAYER": 2,
        "BLOCKS": 2,
    }.items():
        if key in cls.defaults()[cls.node]:
            options[key] = value
    if "N_CTX" in cls.defaults()[cls.node]:
        options |= {"N_CTX": 2}
    return trainer_of(cls, model, NAMES, **options)


def gradients(trainer, image, label):
    """Sum of the losses, and the gradients of everything that is learned."""
    trainer.model.zero_grad(set_to_none=True)
    loss = sum(trainer.losses({"img": image, "label": label}).values())
    loss.backward()
    return loss.detach(), {
        name: p.grad.clone() for name, p in trainer.model.learner.named_parameters() if p.requires_grad
    }


def compare(cls, rank):
    """Largest differences, each over the largest number, of loss, gradients and logits; rank 0 knows the whole."""
    trainer = built(cls, tiny(), seed=rank)  # what is learned starts differently: the first process decides
    image = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    trainer.parallel_model = DistributedDataParallel(trainer.model)
    mine = slice(3 * rank, 3 * rank + 3)
    loss, found = gradients(trainer, image[mine], LABELS[mine])
    loss = distributed.mean(loss)
    trainer.parallel_model = trainer.model
    whole, expected = gradients(trainer, image, LABELS)
    worst = {"loss": float(abs(loss - whole) / abs(whole))}
    worst["gradient"] = max(float((found[k] - expected[k]).abs().max() / expected[k].abs().max()) for k in expected)
    # an evaluation of 5 images, 3 here and 2 there
    trainer.model.eval()
    share = range(rank, 5, 2)  # as the engine shares an evaluation
    with torch.no_grad():
        parts = distributed.all_gather_object(list(zip(share, trainer.model(image[list(share)]).logits)))
        seen = sorted(number for part in parts for number, _ in part)
        logits = {number: row for part in parts for number, row in part}
        ours, alone = torch.stack([logits[k] for k in range(5)]), trainer.model(image[:5]).logits
    worst["logits"] = float((ours - alone).abs().max() / alone.abs().max())
    return {**worst, "seen": seen, "parameters": len(expected)}


def start(rank, port, folder):
    with open(Path(folder) / "out.txt", "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    promptsrc.TEACHER_TEMPLATES = promptsrc.TEACHER_TEMPLATES[:2]
    dist.init_process_group("gloo")
    found = {name: compare(cls, rank) for name, cls in methods().items()}
    dist.barrier()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
