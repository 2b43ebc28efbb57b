"""Pictures with captions for contrastive pre-training, made from the packed artwork as tensors."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dassl.data.datasets import DATASET_REGISTRY

from .embedded import SEEN_STYLES, concepts, load_style
from .embedded.augment import Artist, Strength, contours
from .embedded.captions import Captions, is_upright
from .emoji import EmojiGroups

MONO_STYLES = ("noto-mono", "emojione-mono")
RAMP = 0.5  # share of the training over which pictures and captions grow to full variety


class Artwork:
    """Every drawing a corpus may show, in memory.

    Attributes:
        images: (N, 4, 64, 64) uint8 premultiplied RGBA.
        ink: (N, 4, 64, 64) uint8 line art in four ways, see `contours`; zero for monochrome drawings.
        concept: (N,) int64 concept ids.
        mono: (N,) bool.
        start, count: (C,) int64, drawings of concept c are rows start[c] ... start[c] + count[c] - 1.
        styles: (N,) int64 position in the tuple of styles given.
    """

    def __init__(self, styles: tuple[str, ...]) -> None:
        ids, images, style, mono = [], [], [], []
        for position, name in enumerate(styles):
            concept, art = load_style(name, premultiplied=True)
            ids.append(torch.from_numpy(concept))
            images.append(torch.from_numpy(np.ascontiguousarray(art.transpose(0, 3, 1, 2))))
            style.append(torch.full((len(concept),), position))
            mono.append(torch.full((len(concept),), name in MONO_STYLES))
        order = torch.argsort(torch.cat(ids), stable=True)
        self.concept = torch.cat(ids)[order]
        self.images = torch.cat(images)[order]
        self.styles = torch.cat(style)[order]
        self.mono = torch.cat(mono)[order]
        self.ink = torch.zeros_like(self.images)
        for rows in (~self.mono).nonzero()[:, 0].split(256):
            self.ink[rows] = contours(self.images[rows])
        self.count = torch.bincount(self.concept, minlength=len(concepts()))
        self.start = self.count.cumsum(0) - self.count


class CaptionLoader:
    """Batches of pictures with captions.

    An epoch shows as many pictures as there are drawings. Concepts come in random order, each as often as any other, in
    a style drawn evenly from those it has. The same seed and epoch give the same batches, whatever was read before.

    Each batch is a dictionary: `img` (B, 3, size, size) float32, normalised; `text` list of B captions; `label` (B,)
    int64 concept ids; `positive` (B, B) bool, row picture and column caption, True where the caption is true of the
    picture (its own, or "a bird" for any bird).

    Args:
        artwork: drawings.
        captions: captions of their concepts.
        artist: picture maker.
        batch_size: B.
        max_epoch: length of the training, for the curriculum.
        seed: of all random numbers.
    """

    def __init__(
        self, artwork: Artwork, captions: Captions, artist: Artist, batch_size: int, max_epoch: int, seed: int
    ) -> None:
        if batch_size < 1 or batch_size > len(artwork.images):
            raise ValueError(f"batch_size must be in 1..{len(artwork.images)}, got {batch_size}")
        self.artwork, self.captions, self.artist = artwork, captions, artist
        self.batch_size, self.seed = batch_size, seed
        self.epoch, self.max_epoch = 0, max_epoch
        self.drawn = artwork.count.nonzero()[:, 0]  # concepts that have a drawing
        self.upright = torch.tensor([is_upright(concept) for concept in concepts()])

    def __len__(self) -> int:
        return len(self.artwork.images) // self.batch_size

    def set_epoch(self, epoch: int, max_epoch: int) -> None:
        """Say which epoch (from 0) of how many comes next; sets the random numbers and the place in the curriculum."""
        self.epoch, self.max_epoch = epoch, max_epoch

    @property
    def amount(self) -> float:
        """Place in the curriculum: 0 in the first epoch, 1 from the middle of the training on."""
        return min(1.0, self.epoch / max(1.0, RAMP * self.max_epoch))

    def __iter__(self) -> Iterator[dict]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        amount = self.amount
        self.epoch += 1
        rounds = -(-len(self) * self.batch_size // len(self.drawn))
        order = torch.cat([self.drawn[torch.randperm(len(self.drawn), generator=generator)] for _ in range(rounds)])
        for concept in order[: len(self) * self.batch_size].split(self.batch_size):
            yield self.batch(concept, amount, generator)

    def batch(self, concept: Tensor, amount: float, generator: torch.Generator) -> dict:
        """Pictures and captions of the concepts (B,) given; `amount` in [0, 1] is the place in the curriculum."""
        art, n = self.artwork, len(concept)
        draw = torch.rand(n, 2, generator=generator)
        rows = art.start[concept] + (draw[:, 0] * art.count[concept]).long()
        ink = art.ink[rows, (draw[:, 1] * art.ink.shape[1]).long()][:, None]
        device = self.artist.device
        images = self.artist(
            art.images[rows].to(device), ink.to(device), art.mono[rows], self.upright[concept], amount, generator
        )
        text, terms = self.captions.draw(concept.tolist(), amount, generator)
        positive = self.captions.truth[terms][:, concept].T | (concept[:, None] == concept)
        return {"img": images, "text": text, "label": concept, "positive": positive}


@DATASET_REGISTRY.register()
class EmojiCaptions(EmojiGroups):
    """Artwork of the seen styles with captions; the validation and test items are those of EmojiGroups.

    The training loader gives pairs (`CaptionLoader`), not labelled images: training items serve for class names only.
    """

    def train_loader(self, cfg, generator: torch.Generator | None) -> CaptionLoader:
        """Loader of pairs, on the device that trains. One draw from `generator` seeds it."""
        height, width = cfg.INPUT.SIZE
        if height != width:
            raise ValueError(f"INPUT.SIZE must be square for EmojiCaptions, got {cfg.INPUT.SIZE}")
        device = torch.device("cuda" if cfg.USE_CUDA and torch.cuda.is_available() else "cpu")
        artist = Artist(height, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, Strength(), device)
        seed = int(torch.randint(2**40, (), generator=generator))
        return CaptionLoader(
            Artwork(SEEN_STYLES), Captions(), artist, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.MAX_EPOCH, seed
        )
