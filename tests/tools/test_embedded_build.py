"""Packed artwork: the file format, the matching of drawings to concepts, and the rebuild command."""

import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from datasets.embedded import (
    HERE,
    SEEN_STYLES,
    STYLES,
    UNSEEN_STYLES,
    benchmark,
    concept_ids,
    concepts,
    load_style,
    match,
    pack,
    style_concepts,
)
from tools.embedded import build, sources

COUNTS = {
    "noto": 1592,
    "noto-v1": 1164,
    "noto-mono": 1427,
    "twemoji": 1592,
    "emojione": 1052,
    "emojione-mono": 1049,
    "fxemoji": 640,
    "emojione-v1": 894,
    "openmoji": 1592,
    "openmoji-black": 1592,
    "fluent-flat": 1534,
    "fluent-hc": 1534,
    "fluent-3d": 1547,
    "streamline": 556,
}


def random_images(n: int, colors: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 64, 64, 4), dtype=np.uint8)
    if colors is not None:
        palette = rng.integers(0, 256, (colors, 4), dtype=np.uint8)
        palette[:, 3] = 255
        images = palette[rng.integers(0, colors, (n, 64, 64))]
    return images


def write(tmp_path, data: bytes):
    path = tmp_path / "style.xz"
    path.write_bytes(data)
    return path


def test_images_of_few_colours_survive_packing_exactly(tmp_path):
    images, ids = random_images(3, colors=200), np.array([4, 7, 1500])
    path = write(tmp_path, pack.encode(ids, images))
    found_ids, found = pack.decode(path, premultiplied=False)
    assert found_ids.tolist() == [4, 7, 1500]
    assert np.array_equal(found, images)
    assert pack.read_concepts(path).tolist() == [4, 7, 1500]


def test_images_of_many_colours_get_close_ones(tmp_path):
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    image = np.stack([x * 4, y * 4, (x + y) * 2, np.full_like(x, 255)], -1).astype(np.uint8)
    assert len(np.unique(image.reshape(-1, 4), axis=0)) == 4096
    _, found = pack.decode(write(tmp_path, pack.encode(np.array([0]), image[None])))
    assert len(np.unique(found.reshape(-1, 4), axis=0)) <= 256
    assert np.abs(found[0].astype(int) - image).mean() < 8


def test_packing_is_repeatable():
    images = random_images(2)
    assert pack.encode(np.arange(2), images) == pack.encode(np.arange(2), images.copy())


def test_premultiplied_colours_come_back():
    images = random_images(1)
    images[..., 3] |= 128  # opaque enough for 8 bits to hold the colour
    back = pack.unpremultiply(pack.premultiply(images))
    assert np.abs(back.astype(int) - images).max() <= 1
    assert (pack.premultiply(images)[..., :3] <= images[..., 3:]).all()
    assert not pack.unpremultiply(np.array([[9, 9, 9, 0]], dtype=np.uint8)).any()


@pytest.mark.parametrize("data", [b"no archive", __import__("lzma").compress(b"another thing entirely")])
def test_other_files_are_refused(tmp_path, data):
    path = write(tmp_path, data)
    with pytest.raises(ValueError, match="not a packed style"):
        pack.decode(path)
    with pytest.raises(ValueError, match="not a packed style"):
        pack.read_concepts(path)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(n, 64, 64, 4\)"):
        pack.encode(np.arange(2), random_images(3))


def test_unknown_style():
    with pytest.raises(KeyError, match="noto-v1"):
        load_style("apple")


@pytest.mark.parametrize("style", STYLES)
def test_every_style_has_its_concepts(style):
    ids = style_concepts(style)
    assert len(ids) == COUNTS[style]
    assert list(ids) == sorted(set(ids))
    assert ids[-1] < len(concepts())


def test_load_style_gives_visible_art():
    ids, images = load_style("streamline")
    assert images.shape == (556, 64, 64, 4)
    assert images.dtype == np.uint8
    assert tuple(ids) == style_concepts("streamline")
    covered = (images[..., 3] > 128).mean((1, 2))
    assert covered.min() > 0.01
    assert covered.mean() > 0.2
    red_heart = images[ids.tolist().index(concept_ids()["2764"])] if concept_ids()["2764"] in ids else None
    if red_heart is not None:
        middle = red_heart[32, 32].astype(int)
        assert middle[0] > 150
        assert middle[0] > middle[1] + 60


def test_styles_are_in_one_role_only():
    assert set(SEEN_STYLES) & set(UNSEEN_STYLES) == set()
    assert set(STYLES) - set(SEEN_STYLES) - set(UNSEEN_STYLES) == {"emojione-v1"}
    unseen_artists = {sources.STYLES[style].author.split(",")[0] for style in UNSEEN_STYLES}
    assert not unseen_artists & {sources.STYLES[style].author.split(",")[0] for style in SEEN_STYLES}
    assert not unseen_artists & {package.author for package in sources.ICON_SETS.values()}


def test_benchmark_names_known_concepts():
    classes = benchmark()
    known = set(concept_ids())
    assert len(classes["groups"]) == 69
    assert {name: len(table) for name, table in classes["fine"].items()} == {
        "EmojiAnimals": 109,
        "EmojiFood": 124,
        "EmojiObjects": 351,
        "EmojiTravel": 186,
        "EmojiFaces": 119,
        "EmojiPeople": 67,
        "EmojiClocks": 24,
    }
    for table in (classes["groups"], *classes["fine"].values()):
        codes = [code for members in table.values() for code in members]
        assert set(codes) <= known
        assert all(name and members for name, members in table.items())
    in_groups = {code for members in classes["groups"].values() for code in members}
    assert set(classes["split"]) == in_groups


def test_plain_hex():
    assert match.plain_hex("2764-fe0f-200d-1f525") == "2764-200D-1F525"


def test_match_by_name_prefers_labels_and_gives_a_drawing_once():
    concepts_ = [
        {"code": "1F42F", "label": "tiger face", "names": ["TIGER FACE", "tiger"]},
        {"code": "1F405", "label": "tiger", "names": ["TIGER", "tiger2"]},
        {"code": "1F33A", "label": "hibiscus", "names": ["HIBISCUS"]},
        {"code": "1F43B", "label": "bear", "names": ["BEAR FACE"]},
        {"code": "1F600", "label": "grinning face", "names": ["GRINNING FACE", "grinning"]},
    ]
    found = match.match_by_name(concepts_, ["tiger", "Bear_Face", "grinning-2", "grinning-1"], {"hibiscus": "tiger"})
    assert found == {1: "tiger", 3: "Bear_Face", 4: "grinning-1"}


def test_match_by_code_ignores_the_variation_selector():
    concepts_ = [{"code": "2764"}, {"code": "1F600"}]
    assert match.match_by_code(concepts_, {"2764-fe0f": "heart", "1f601": "other"}) == {0: "heart"}


def test_concepts_leave_out_flags_keycaps_and_letters():
    assert len(concepts()) == 1592
    assert not {concept.group for concept in concepts()} & {"flags", "component"}
    assert not {concept.subgroup for concept in concepts()} & {"keycap", "alphanum"}
    assert len(concept_ids()) == len(concepts())


def test_every_package_is_pinned():
    packages = [sources.LABELS, *sources.STYLES.values(), *sources.ICON_SETS.values()]
    pinned = json.loads(build.INTEGRITY.read_text())
    assert {f"{package.name}@{package.version}" for package in packages} == set(pinned)
    assert all(re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", value) for value in pinned.values())


def test_third_party_lists_every_package():
    text = (HERE.parents[1] / "THIRD_PARTY.md").read_text()
    for package in (sources.LABELS, *sources.STYLES.values(), *sources.ICON_SETS.values()):
        assert package.name in text
        assert package.version in text


def test_a_changed_archive_is_refused(tmp_path):
    (tmp_path / sources.LABELS.archive).write_bytes(b"something else")
    with pytest.raises(ValueError, match="integrity sha512-"):
        build.fetch(sources.LABELS, tmp_path)


def test_npm_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="npm is not installed"):
        build.fetch(sources.LABELS, tmp_path)


def test_check_finds_a_difference(monkeypatch, capsys, tmp_path):
    style = HERE / "styles" / "streamline.xz"
    same = {style: style.read_bytes()}
    monkeypatch.setattr(build, "build", lambda folder, styles: same)
    assert build.main(["--check", "--packages", str(tmp_path)]) == 0
    same[style] = same[style][:-1] + b"x"
    assert build.main(["--check", "--packages", str(tmp_path)]) == 1
    assert "differs" in capsys.readouterr().out
    assert hashlib.sha256(style.read_bytes()).hexdigest() != hashlib.sha256(same[style]).hexdigest()


def test_sheet_shows_blank_cells_for_missing_drawings(tmp_path):
    path = tmp_path / "images" / "sheet.png"
    build.write_sheet(path, ("1F600", "1F34E"))  # fxemoji has no grinning face
    with Image.open(path) as image:
        sheet = np.array(image.convert("RGB"))
    assert sheet.shape == (14 * 66, 2 * 66, 3)
    row = STYLES.index("fxemoji") * 66
    assert (sheet[row + 1 : row + 65, 1:65] == 255).all()
    assert sheet[row + 1 : row + 65, 67:131].std() > 10
