"""ImageNetV2, the matched-frequency test set."""

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.standard import TestFolders, list_folder


@DATASET_REGISTRY.register()
class ImageNetV2(TestFolders):
    """10,000 new images of ImageNet's 1,000 classes; folders are the labels 0 to 999."""

    def list_items(self, images: Path, names: dict[str, str]) -> list[Datum]:
        missing = [label for label in range(len(names)) if not (images / str(label)).is_dir()]
        if missing:
            some = ", ".join(map(str, missing[:5]))
            raise FileNotFoundError(
                f'"{images}" lacks {len(missing)} of the folders 0 to {len(names) - 1}: {some}. '
                f"Where to get them: {self.source}"
            )
        return [
            item for label, name in enumerate(names.values()) for item in list_folder(images / str(label), label, name)
        ]
