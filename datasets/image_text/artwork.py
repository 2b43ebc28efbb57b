"""Pictures with captions for contrastive pre-training, made from the packed artwork as tensors."""

import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import distributed
from datasets.embedded import SEEN_STYLES, concepts, load_style
from datasets.embedded.augment import Artist, Strength, contours
from datasets.embedded.captions import Captions
from datasets.embedded.emoji import EmojiGroups
from datasets.embedded.icons import load_icons

logger = logging.getLogger(__name__)

MONO_STYLES = ("noto-mono", "emojione-mono")
RAMP = 0.5  # share of the training over which pictures and captions grow to full variety
ICON_SHARE = 0.15  # share of icons in a batch, if there are any
_BLACK = 40  # a drawing whose channels all stay below this is black line art


class Artwork:
    """Every drawing a corpus may show, in memory.

    Attributes:
        images: (N, 4, 64, 64) uint8 premultiplied RGBA; the emoji, sorted by concept, then the icons.
        concept: (N,) int64 concept ids; icons that are not emoji have ids from the number of emoji concepts on.
        mono: (N,) bool, black line art.
        ink: (colour drawings, 4, 64, 64) uint8 line art in four ways, see `contours`; row `ink_row[i]` is of drawing i.
        emoji: number of emoji drawings.
        count, start: (emoji concepts,) int64; drawings of concept c are rows start[c] ... start[c] + count[c] - 1.
        words: names of the icons that are not emoji, in the order of their ids.

    Args:
        styles: styles to show.
        icons: rows and images of `load_icons`.
    """

    def __init__(self, styles: tuple[str, ...], icons: tuple[list[list], np.ndarray] | None = None) -> None:
        loaded = [load_style(name, premultiplied=True) for name in styles]
        concept = torch.cat([torch.from_numpy(ids) for ids, _ in loaded])
        order = torch.argsort(concept, stable=True)
        self.emoji = len(order)
        mono = torch.cat([torch.full((len(ids),), name in MONO_STYLES) for name, (ids, _) in zip(styles, loaded)])
        parts, concepts_, monos = [_planes([art for _, art in loaded])[order]], [concept[order]], [mono[order]]
        new: dict[str, int] = {}
        if icons is not None:
            rows, art = icons
            first = len(concepts())
            ids = [known if known >= 0 else new.setdefault(words, first + len(new)) for _, words, known in rows]
            parts.append(_planes([art]))
            concepts_.append(torch.tensor(ids))
            monos.append(parts[1][:, :3].amax((1, 2, 3)) < _BLACK)
        self.words = tuple(new)
        self.images, self.concept, self.mono = torch.cat(parts), torch.cat(concepts_), torch.cat(monos)
        color = (~self.mono).nonzero()[:, 0]
        self.ink = torch.cat([contours(self.images[rows]) for rows in color.split(256)])
        self.ink_row = torch.zeros(len(self.mono), dtype=torch.int64)
        self.ink_row[color] = torch.arange(len(color))
        self.count = torch.bincount(concept, minlength=len(concepts()))
        self.start = self.count.cumsum(0) - self.count


def _planes(images: list[np.ndarray]) -> Tensor:
    """(n, 64, 64, 4) arrays -> one (N, 4, 64, 64) tensor."""
    return torch.cat([torch.from_numpy(np.ascontiguousarray(art.transpose(0, 3, 1, 2))) for art in images])


class CaptionLoader:
    """Batches of pictures with captions.

    An epoch shows as many pictures as there are emoji drawings. Concepts come in random order, each as often as any
    other, in a style drawn evenly from those it has; ICON_SHARE of each batch are icons, if there are any. The same
    seed and epoch give the same batches, whatever was read before.

    Each batch is a dictionary: `img` (B, 3, size, size) float32, normalised; `text` list of B captions; `label` (B,)
    int64 concept ids; `positive` (B, B) bool, row picture and column caption, True where the caption is true of the
    picture (its own, or "a bird" for any bird).

    Args:
        artwork: drawings.
        artist: picture maker.
        batch_size: B.
        max_epoch: length of the training, for the curriculum.
        seed: of all random numbers.

    Raises:
        ValueError: batch_size is below 1 or above the number of drawings.
    """

    def __init__(self, artwork: Artwork, artist: Artist, batch_size: int, max_epoch: int, seed: int) -> None:
        if batch_size < 1 or batch_size > artwork.emoji:
            raise ValueError(f"batch_size must be in 1..{artwork.emoji}, got {batch_size}")
        self.artwork, self.artist = artwork, artist
        self.captions = Captions(artwork.words)
        self.batch_size, self.seed = batch_size, seed
        self.epoch, self.max_epoch = 0, max_epoch
        self.icons = round(ICON_SHARE * batch_size) if len(artwork.images) > artwork.emoji else 0
        self.drawn = artwork.count.nonzero()[:, 0]  # concepts that have a drawing

    def __len__(self) -> int:
        return max(1, self.artwork.emoji // (self.batch_size * distributed.get_world_size()))

    def set_epoch(self, epoch: int, max_epoch: int) -> None:
        """Say which epoch (from 0) of how many comes next; sets the random numbers and the place in the curriculum."""
        self.epoch, self.max_epoch = epoch, max_epoch

    @property
    def amount(self) -> float:
        """Place in the curriculum: 0 in the first epoch, 1 from the middle of the training on."""
        return min(1.0, self.epoch / max(1.0, RAMP * self.max_epoch))

    def __iter__(self) -> Iterator[dict]:
        process = distributed.get_rank() * 7_919_000_003  # processes show their own pictures
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch + process) % 2**63)
        amount, art = self.amount, self.artwork
        self.epoch += 1
        wanted = self.batch_size - self.icons
        rounds = -(-len(self) * wanted // len(self.drawn))
        order = torch.cat([self.drawn[torch.randperm(len(self.drawn), generator=generator)] for _ in range(rounds)])
        for concept in order[: len(self) * wanted].split(wanted):
            style = torch.rand(len(concept), generator=generator)
            rows = art.start[concept] + (style * art.count[concept]).long()
            if self.icons:
                icons = torch.randint(art.emoji, len(art.images), (self.icons,), generator=generator)
                rows = torch.cat([rows, icons])
            yield self.batch(rows, amount, generator)

    def batch(self, rows: Tensor, amount: float, generator: torch.Generator) -> dict:
        """Pictures and captions of the drawings (B,) given; `amount` in [0, 1] is the place in the curriculum."""
        art, device = self.artwork, self.artist.device
        concept = art.concept[rows]
        way = torch.randint(art.ink.shape[1], (len(rows),), generator=generator)
        ink = art.ink[art.ink_row[rows], way][:, None]
        images = self.artist(
            *(art.images[rows].to(device), ink.to(device), art.mono[rows], self.captions.upright[concept]),
            *(amount, generator),
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
        icons = load_icons()
        if icons is not None:
            logger.info("Pre-training also on %d icons, %d %% of each batch", len(icons[0]), 100 * ICON_SHARE)
        artwork = Artwork(SEEN_STYLES, icons)
        return CaptionLoader(artwork, artist, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.MAX_EPOCH, seed)
