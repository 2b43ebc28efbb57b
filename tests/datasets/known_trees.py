"""Miniature trees of the known data sets in their real layouts, with small images and real annotation formats."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def picture():
    """Bytes of a JPEG of 6 x 6 pixels."""
    file = io.BytesIO()
    Image.fromarray(np.arange(108, dtype=np.uint8).reshape(6, 6, 3)).save(file, "JPEG")
    return file.getvalue()


PICTURE = picture()


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PICTURE)


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_flower_labels(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"labels": np.array([labels], dtype=np.uint8)})


def write_car_annotations(path, labels):
    """A list of annotations as in the devkit: 1 x N structs with boxes, class (from 1) and file name."""
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    rows = np.empty((1, len(labels)), dtype=[(field, object) for field in fields])
    for index, label in enumerate(labels):
        rows[0, index] = (1, 2, 3, 4, np.uint8(label), f"{index + 1:05d}.jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": rows})


def write_car_names(path, names):
    cells = np.empty((1, len(names)), dtype=object)
    cells[0, :] = names
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"class_names": cells})


def listed_images(tree):
    """Image files that the annotation files of the golden tree name, below the data root."""
    found = []
    for part in ("trainval", "test"):
        lines = tree[f"oxford_pets/annotations/{part}.txt"].splitlines()
        found += [f"oxford_pets/images/{line.split()[0]}.jpg" for line in lines]
    for part in ("Training", "Testing"):
        found += [f"sun397/SUN397{line}" for line in tree[f"sun397/{part}_01.txt"].splitlines()]
    folders = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "HandstandPushups": "Handstand_Pushups", "YoYo": "Yo_Yo"}
    for part in ("train", "test"):
        for line in tree[f"ucf101/ucfTrainTestlist/{part}list01.txt"].splitlines():
            action, video = line.split()[0].split("/")
            found.append(f"ucf101/UCF-101-midframes/{folders[action]}/{video.replace('.avi', '.jpg')}")
    for part in ("train", "val", "test"):
        lines = tree[f"fgvc_aircraft/images_variant_{part}.txt"].splitlines()
        found += [f"fgvc_aircraft/images/{line.split()[0]}.jpg" for line in lines]
    for part, key in (("train", "devkit/cars_train_annos"), ("test", "cars_test_annos_withlabels")):
        (labels,) = (value for name, value in tree.items() if name.startswith(f"stanford_cars/{key}.mat"))
        found += [f"stanford_cars/cars_{part}/{number + 1:05d}.jpg" for number in range(len(labels))]
    return found


def write_golden_tree(root):
    """The tree of raw_readers.json."""
    tree = golden("raw_readers")["tree"]
    for folder, pattern, first, count in tree["_images"]:
        for number in range(first, first + count):
            write_image(root / folder / (pattern % number))
    for file in [*tree["_hidden"], *listed_images(tree)]:
        write_image(root / file)
    for name, value in tree.items():
        if name.startswith("_"):
            continue
        if name.startswith("oxford_flowers/imagelabels.mat"):
            write_flower_labels(root / "oxford_flowers/imagelabels.mat", value)
        elif "annotations class by index" in name:
            write_car_annotations(root / name.split(" ")[0], value)
        elif name.startswith("stanford_cars/devkit/cars_meta.mat"):
            write_car_names(root / "stanford_cars/devkit/cars_meta.mat", value)
        elif name == "imagenetv2/classnames.txt":
            write_text(root / name, "".join(f"n{i:08d} name {i}\n" for i in range(1000)))
        else:
            write_text(root / name, value)
    for label in range(1000):
        (root / "imagenetv2/imagenetv2-matched-frequency-format-val" / str(label)).mkdir(parents=True, exist_ok=True)
    return root


def real_names(name):
    return golden("class_names")["names"][name]
