"""Catalog of the standard data sets: names, folders, sizes, licenses, counts and checksums. No code depends on them.

Readers take their folders from here; tools that fetch or check data take everything else. Paths use "/" and are below
the data set's folder, which is below the data root.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["CATALOG", "IMAGENET_NAMES_SHA256", "DatasetInfo", "prepare_command"]

IMAGENET_NAMES_SHA256 = "89e0b642c6697a3a43a06a2bb65f9fefb3ca295ccc5f4ba9ce385f1a3a58c629"  # of classnames.txt
_IMAGENET_NAMES_DRIVE = "1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF"
_IMAGENET_CLASSES_SHA256 = "571ae1c583b4be7da87519494c52bf405a46af05d5815627c7a0dee997068b60"  # of the names in it
_PHOTO = "a photo of a {}."


@dataclass(frozen=True)
class DatasetInfo:
    """One data set.

    Attributes:
        name: class name of the reader, DATASET.NAME.
        config: file name in configs/datasets, without .yaml.
        folder: folder below the data root.
        images: folder of the images that split files are relative to; "" is the data set's folder itself.
        classes: number of classes.
        train, val, test: numbers of images; None where the data set has no such split.
        template: prompt of zero-shot CLIP.
        title, home: what people call it and where it comes from.
        size: of the download, roughly. licence: terms that the source states.
        split_file: name of the split file; "" where the data set needs none.
        layout: files and folders that the reader needs, besides images and split file.
        annotations: files that a split is made from on request.
        manual: True if nobody may or can fetch the images automatically.
        sha256: file -> sha256. git_blob: file -> git's SHA-1 of the blob (sha1 of "blob <bytes>\\0" and the content).
        drive: file -> id on Google Drive, where the authors of CoOp publish it.
        names_sha256: of the class names in label order, joined by newlines.
        picks_sha256: of the 16-shot picks of seed 1: training paths, a line "--", validation paths, newline-joined.
    """

    name: str
    config: str
    folder: str
    images: str
    classes: int
    train: int | None
    val: int | None
    test: int
    title: str
    home: str
    size: str
    licence: str
    template: str = _PHOTO
    split_file: str = ""
    layout: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    manual: bool = False
    sha256: Mapping[str, str] = field(default_factory=dict)
    git_blob: Mapping[str, str] = field(default_factory=dict)
    drive: Mapping[str, str] = field(default_factory=dict)
    names_sha256: str = ""
    picks_sha256: str = ""

    @property
    def made_split(self) -> str:
        """Name of a split file made on request: never the official name, so that nobody takes it for that."""
        return f"split_made_{self.name}.json" if self.split_file else ""


def prepare_command(name: str, root: str = "") -> str:
    """The command that fetches a data set to the data root; "" stands for DATA."""
    return f"python -m datasets.prepare {name} --root {shlex.quote(root) if root else 'DATA'}"


_ENTRIES = (
    DatasetInfo(
        name="Caltech101",
        config="caltech101",
        folder="caltech-101",
        images="101_ObjectCategories",
        split_file="split_zhou_Caltech101.json",
        classes=100,
        train=4128,
        val=1649,
        test=2465,
        title="Caltech 101",
        home="https://data.caltech.edu/records/mzrjq-6wc02",
        size="137 MB",
        licence="CC BY 4.0",
        sha256={"split_zhou_Caltech101.json": "52ce83205ff8ff8a1a18119aad6376120ae35c36e783a984bc560cbf10e73fa5"},
        drive={"split_zhou_Caltech101.json": "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"},
        names_sha256="84f9ff49dce58ae6e74754fd578f6dd6bb9c1b711758e7c3da3888216d0630ca",
        picks_sha256="edc5ffc2faa643d2d66ae8155fc98cf58b01567735c6b000ee020bdba5d31f23",
    ),
    DatasetInfo(
        name="OxfordPets",
        config="oxford_pets",
        folder="oxford_pets",
        images="images",
        split_file="split_zhou_OxfordPets.json",
        annotations=("annotations/trainval.txt", "annotations/test.txt"),
        classes=37,
        train=2944,
        val=736,
        test=3669,
        template="a photo of a {}, a type of pet.",
        title="Oxford-IIIT Pet",
        home="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        size="0.8 GB",
        licence="CC BY-SA 4.0",
        sha256={"split_zhou_OxfordPets.json": "d7f3ffe65b3919f95132e51422894ae18686b83c331fd8c0adcdc3dc2de6301e"},
        drive={"split_zhou_OxfordPets.json": "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"},
        names_sha256="8e35ab44db27d55ab1a062c8af3308606560f9f3e3a6bf698b19e4ea54212d6d",
        picks_sha256="df8b41967cf106d80de3a68b7a9a921b7e90d3a7b86909942ee0b8a2f9485570",
    ),
    DatasetInfo(
        name="StanfordCars",
        config="stanford_cars",
        folder="stanford_cars",
        images="",
        split_file="split_zhou_StanfordCars.json",
        layout=("cars_train", "cars_test"),
        annotations=("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat", "devkit/cars_meta.mat"),
        classes=196,
        train=6509,
        val=1635,
        test=8041,
        title="Stanford Cars",
        home="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        size="1.9 GB",
        licence="research, not commercial",
        sha256={"split_zhou_StanfordCars.json": "40acee7aa65c8e4727a32d90e884b7c3f8960b523422317e163f7af65432959d"},
        drive={"split_zhou_StanfordCars.json": "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"},
        names_sha256="2caca90b5c02b65fcd9542cc2c934aa40c56ded5cb5b72e6e0b8e6b023cf81f9",
        picks_sha256="9447740a23e8c8544b291b2754c9a073c053f679e34b9c80e2113666397c762b",
    ),
    DatasetInfo(
        name="OxfordFlowers",
        config="oxford_flowers",
        folder="oxford_flowers",
        images="jpg",
        split_file="split_zhou_OxfordFlowers.json",
        annotations=("imagelabels.mat", "cat_to_name.json"),
        classes=102,
        train=4093,
        val=1633,
        test=2463,
        template="a photo of a {}, a type of flower.",
        title="Oxford Flowers 102",
        home="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        size="0.35 GB",
        licence="none stated",
        sha256={
            "split_zhou_OxfordFlowers.json": "2f50c42fc1a17ca13c271cb4269b1347bdb43d2be672e34f74a4e4cbfbcca794",
            "cat_to_name.json": "0469f1ad7fe0072d98155c49aa58649d998edbbe3326229003aa5f7228525236",
        },
        drive={
            "split_zhou_OxfordFlowers.json": "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT",
            "cat_to_name.json": "1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0",
        },
        names_sha256="0d27092c2140383d4f002dc99d20c184d58ffdc454e5f4d12f0475b4e23480ee",
        picks_sha256="c82c9cf4fbd3abc9b0cf0aca07733422e8fa91b5e4e985679159d3d988e0618e",
    ),
    DatasetInfo(
        name="Food101",
        config="food101",
        folder="food-101",
        images="images",
        split_file="split_zhou_Food101.json",
        classes=101,
        train=50500,
        val=20200,
        test=30300,
        template="a photo of {}, a type of food.",
        title="Food-101",
        home="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        size="5.0 GB",
        licence="none stated; images of foodspotting.com",
        git_blob={"split_zhou_Food101.json": "39557040ee6501bd32aa8b5dfd75f7941a32f0a7"},
        drive={"split_zhou_Food101.json": "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"},
        names_sha256="efe7060c0e6aa88c98d3ad9532240013747f6b2179d45e1f750527890437c59d",
        picks_sha256="88707b4d53928b0ee42cc8ae28f02826c93f79353559e76364866e7d8ba56d27",
    ),
    DatasetInfo(
        name="FGVCAircraft",
        config="fgvc_aircraft",
        folder="fgvc_aircraft",
        images="images",
        layout=("variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt"),
        classes=100,
        train=3334,
        val=3333,
        test=3333,
        template="a photo of a {}, a type of aircraft.",
        title="FGVC-Aircraft, variants",
        home="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        size="2.8 GB",
        licence="research, not commercial",
        names_sha256="e1c9e72060e63d526dce032008262a95f573b02e802be7be42f0cb6ccd5b4217",
        picks_sha256="03b7da060c2c59c4db217577c1deeb72adb4bef7cbbcc5b9baa61992ec8139d3",
    ),
    DatasetInfo(
        name="SUN397",
        config="sun397",
        folder="sun397",
        images="SUN397",
        split_file="split_zhou_SUN397.json",
        annotations=("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
        classes=397,
        train=15880,
        val=3970,
        test=19850,
        title="SUN397",
        home="https://vision.princeton.edu/projects/2010/SUN/",
        size="37 GB",
        licence="none stated; research",
        git_blob={"split_zhou_SUN397.json": "8d5725db8f70bcf02245665304f863e68f96a24c"},
        drive={"split_zhou_SUN397.json": "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"},
        names_sha256="583c0fad85d22c563fc88e49462efce4c5a08aec1e0b8020f325224af67cb040",
        picks_sha256="6303fadedad66dcfe90281036652fc9e4df47b3d9cb99521ee6b4643822cbeab",
    ),
    DatasetInfo(
        name="DescribableTextures",
        config="dtd",
        folder="dtd",
        images="images",
        split_file="split_zhou_DescribableTextures.json",
        classes=47,
        train=2820,
        val=1128,
        test=1692,
        template="{} texture.",
        title="Describable Textures (DTD)",
        home="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        size="0.6 GB",
        licence="research",
        sha256={
            "split_zhou_DescribableTextures.json": "f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38"
        },
        drive={"split_zhou_DescribableTextures.json": "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"},
        names_sha256="681d23b9cd3c2edec8ff7ea1fd6f5dd92f3b8d1dfb5a43fd0faee72a116c1130",
        picks_sha256="dd8c1eb16938033c1c4b9227bc282fec9e0c1fe8f59bbaa0e6ecf16812fad59b",
    ),
    DatasetInfo(
        name="EuroSAT",
        config="eurosat",
        folder="eurosat",
        images="2750",
        split_file="split_zhou_EuroSAT.json",
        classes=10,
        train=13500,
        val=5400,
        test=8100,
        template="a centered satellite photo of {}.",
        title="EuroSAT (RGB)",
        home="https://github.com/phelber/EuroSAT",
        size="90 MB",
        licence="MIT; Copernicus Sentinel data",
        sha256={"split_zhou_EuroSAT.json": "541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2"},
        drive={"split_zhou_EuroSAT.json": "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"},
        names_sha256="bcff3a8022b63397730ecbb798e13cf58822547521ea94ed2975f05971b28da3",
        picks_sha256="87334b8acabc2c18f6f1a005969f62a20b83060c0f2ee02ddd7537d7c2247f45",
    ),
    DatasetInfo(
        name="UCF101",
        config="ucf101",
        folder="ucf101",
        images="UCF-101-midframes",
        split_file="split_zhou_UCF101.json",
        annotations=(
            "ucfTrainTestlist/classInd.txt",
            "ucfTrainTestlist/trainlist01.txt",
            "ucfTrainTestlist/testlist01.txt",
        ),
        classes=101,
        train=7639,
        val=1898,
        test=3783,
        template="a photo of a person doing {}.",
        title="UCF101, middle frames",
        home="https://www.crcv.ucf.edu/data/UCF101.php",
        size="below 1 GB (frames)",
        licence="none stated; research",
        sha256={"split_zhou_UCF101.json": "d78cb834f7c5792ceaff2c5ee2d7c76a9e4086e48a3a6b01232989d29cbefdd8"},
        drive={
            "split_zhou_UCF101.json": "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y",
            "UCF-101-midframes.zip": "10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",
        },
        names_sha256="d22e81fba7ebebf0fb154d6bc7c3b2c11a31a31d102b6873aa4f37413abaefc1",
        picks_sha256="0c481eb0b333798cb47d93b5ba1e43fbfc8ea6c7416dccc8ee9cfb0013716a1f",
    ),
    DatasetInfo(
        name="ImageNet",
        config="imagenet",
        folder="imagenet",
        images="images",
        layout=("images/train", "images/val", "classnames.txt"),
        classes=1000,
        train=1281167,
        val=None,
        test=50000,
        title="ImageNet (ILSVRC 2012)",
        home="https://www.image-net.org/",
        size="155 GB",
        licence="research, not commercial; account needed",
        manual=True,
        sha256={"classnames.txt": IMAGENET_NAMES_SHA256},
        drive={"classnames.txt": _IMAGENET_NAMES_DRIVE},
        names_sha256=_IMAGENET_CLASSES_SHA256,
    ),
    DatasetInfo(
        name="ImageNetV2",
        config="imagenetv2",
        folder="imagenetv2",
        images="imagenetv2-matched-frequency-format-val",
        layout=("classnames.txt",),
        classes=1000,
        train=None,
        val=None,
        test=10000,
        title="ImageNetV2, matched frequency",
        home="https://github.com/modestyachts/ImageNetV2",
        size="1.3 GB",
        licence="MIT",
        sha256={"classnames.txt": IMAGENET_NAMES_SHA256},
        drive={"classnames.txt": _IMAGENET_NAMES_DRIVE},
        names_sha256=_IMAGENET_CLASSES_SHA256,
    ),
    DatasetInfo(
        name="ImageNetSketch",
        config="imagenet_sketch",
        folder="imagenet-sketch",
        images="images",
        layout=("classnames.txt",),
        classes=1000,
        train=None,
        val=None,
        test=50889,
        title="ImageNet-Sketch",
        home="https://github.com/HaohanWang/ImageNet-Sketch",
        size="7 GB",
        licence="MIT",
        sha256={"classnames.txt": IMAGENET_NAMES_SHA256},
        drive={"classnames.txt": _IMAGENET_NAMES_DRIVE},
        names_sha256=_IMAGENET_CLASSES_SHA256,
    ),
    DatasetInfo(
        name="ImageNetA",
        config="imagenet_a",
        folder="imagenet-adversarial",
        images="imagenet-a",
        layout=("classnames.txt",),
        classes=200,
        train=None,
        val=None,
        test=7500,
        title="ImageNet-A",
        home="https://github.com/hendrycks/natural-adv-examples",
        size="0.7 GB",
        licence="MIT",
        sha256={"classnames.txt": IMAGENET_NAMES_SHA256},
        drive={"classnames.txt": _IMAGENET_NAMES_DRIVE},
    ),
    DatasetInfo(
        name="ImageNetR",
        config="imagenet_r",
        folder="imagenet-rendition",
        images="imagenet-r",
        layout=("classnames.txt",),
        classes=200,
        train=None,
        val=None,
        test=30000,
        title="ImageNet-R",
        home="https://github.com/hendrycks/imagenet-r",
        size="2.2 GB",
        licence="MIT",
        sha256={"classnames.txt": IMAGENET_NAMES_SHA256},
        drive={"classnames.txt": _IMAGENET_NAMES_DRIVE},
    ),
    DatasetInfo(
        name="CIFAR10",
        config="cifar10",
        folder="cifar10",
        images="images",
        layout=("images/train", "images/test"),
        classes=10,
        train=50000,
        val=None,
        test=10000,
        title="CIFAR-10",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        size="0.17 GB",
        licence="none stated",
    ),
    DatasetInfo(
        name="CIFAR100",
        config="cifar100",
        folder="cifar100",
        images="images",
        layout=("images/train", "images/test"),
        classes=100,
        train=50000,
        val=None,
        test=10000,
        title="CIFAR-100",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        size="0.17 GB",
        licence="none stated",
    ),
)
CATALOG: Mapping[str, DatasetInfo] = {info.name: info for info in _ENTRIES}
