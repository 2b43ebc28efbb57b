"""FGVC-Aircraft at the level of variants, with its official lists."""

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.prepare.splits import Splits, read_lines
from datasets.standard import KnownDataset


@DATASET_REGISTRY.register()
class FGVCAircraft(KnownDataset):
    """100 variants in the order of variants.txt."""

    def read_items(self, folder: Path) -> Splits:
        missing = [file for file in self.info.layout if not (folder / file).is_file()]
        if missing:
            raise FileNotFoundError(f'"{folder}" has no {", ".join(missing)}. Where to get it: {self.source}')
        labels = {
            name: label for label, name in enumerate(line.strip() for line in read_lines(folder / "variants.txt"))
        }
        images = folder / self.image_dir
        train, val, test = (
            read_list(folder / f"images_variant_{part}.txt", images, labels) for part in ("train", "val", "test")
        )
        return train, val, test


def read_list(path: Path, images: Path, labels: dict[str, int]) -> list[Datum]:
    """Items of a list of lines "<image> <variant>"; ValueError for another line or an unknown variant."""
    items = []
    for number, line in enumerate(read_lines(path), start=1):
        image, _, variant = line.strip().partition(" ")
        if variant not in labels:
            raise ValueError(f'line {number} of "{path}" is {line!r}, expected "<image> <a line of variants.txt>"')
        items.append(Datum(str(images / f"{image}.jpg"), labels[variant], classname=variant))
    return items
