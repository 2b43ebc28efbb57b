"""The corpus of contrastive pre-training: captions, curriculum, pictures and batches."""

import re
import time

import numpy as np
import pytest
import torch

from dassl.config import get_cfg_default
from datasets.embedded import SEEN_STYLES, UNSEEN_STYLES, augment, benchmark, concept_ids, concepts, icons, load_style
from datasets.embedded.captions import TEMPLATES, Captions, is_upright, subgroup_phrase
from datasets.image_text import artwork as image_text
from datasets.image_text.artwork import Artwork, CaptionLoader

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


@pytest.fixture(scope="module")
def artwork():
    return Artwork(("fxemoji", "noto-mono"))


@pytest.fixture(scope="module")
def captions():
    return Captions()


def artist(strength=None, size=64):
    strength = augment.Strength() if strength is None else strength
    return augment.Artist(size, MEAN, STD, strength, torch.device("cpu"))


def loader(artwork, batch_size=32, max_epoch=10, seed=3):
    return CaptionLoader(artwork, artist(), batch_size, max_epoch, seed)


def index(label: str) -> int:
    return next(i for i, concept in enumerate(concepts()) if concept.label == label)


def plain(pictures):
    """Normalised pictures -> colours in [0, 1]."""
    return pictures * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def test_corpus_holds_no_unseen_or_share_alike_style(monkeypatch, tmp_path, artwork):
    asked = []
    monkeypatch.setattr(image_text, "Artwork", lambda styles, icons: asked.extend(styles) or artwork)
    monkeypatch.setattr(image_text, "load_icons", lambda: None)
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.INPUT.SIZE, cfg.USE_CUDA = str(tmp_path), (64, 64), False
    cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = ("openmoji-black",), ("streamline",)
    cfg.OPTIM.MAX_EPOCH, cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 7, 20
    data = image_text.EmojiCaptions(cfg)
    made = data.train_loader(cfg, torch.Generator().manual_seed(1))
    assert asked == list(SEEN_STYLES)
    assert not set(asked) & {*UNSEEN_STYLES, "emojione-v1"}
    assert (made.batch_size, made.max_epoch, data.num_classes) == (20, 7, 69)
    assert made.seed == data.train_loader(cfg, torch.Generator().manual_seed(1)).seed
    assert made.seed != data.train_loader(cfg, torch.Generator().manual_seed(2)).seed
    cfg.INPUT.SIZE = (64, 32)
    with pytest.raises(ValueError, match="square"):
        data.train_loader(cfg, None)


def test_batches(artwork):
    made = loader(artwork)
    assert len(made) == (640 + 1427) // 32
    batch = next(iter(made))
    assert batch["img"].shape == (32, 3, 64, 64)
    assert batch["img"].dtype == torch.float32
    assert len(batch["text"]) == 32
    assert batch["label"].dtype == torch.int64
    assert batch["positive"].shape == (32, 32)
    colors = plain(batch["img"])
    assert colors.min() > -1e-5
    assert colors.max() < 1 + 1e-5


def test_same_seed_and_epoch_give_the_same_batches(artwork):
    def batches(seed, epoch, warm=0):
        made = loader(artwork, seed=seed)
        for _ in range(warm):
            next(iter(made))
        made.set_epoch(epoch, 10)
        stream = iter(made)
        return [next(stream) for _ in range(2)]

    first, again, other_seed, other_epoch = batches(3, 4), batches(3, 4, warm=2), batches(5, 4), batches(3, 5)
    for one, two in zip(first, again):
        assert torch.equal(one["img"], two["img"])
        assert one["text"] == two["text"]
    assert not torch.equal(first[0]["label"], other_seed[0]["label"])
    assert not torch.equal(first[0]["label"], other_epoch[0]["label"])


def test_epochs_differ_without_set_epoch(artwork):
    made = loader(artwork)
    assert not torch.equal(next(iter(made))["label"], next(iter(made))["label"])


def test_concepts_come_equally_often_and_styles_evenly(artwork):
    made = loader(artwork, batch_size=64)
    rows = []
    made.batch = lambda chosen, amount, generator: rows.append(chosen)
    for epoch in range(30):
        made.set_epoch(epoch, 30)
        list(made)
    rows = torch.cat(rows)
    times = torch.bincount(artwork.concept[rows], minlength=len(concepts()))[artwork.count > 0]
    assert times.float().std() / times.float().mean() < 0.12
    both = artwork.count[artwork.concept[rows]] == 2
    assert abs(artwork.mono[rows][both].float().mean().item() - 0.5) < 0.02


def test_rows_belong_to_their_concept(artwork):
    for style in ("fxemoji", "noto-mono"):
        ids, images = load_style(style, premultiplied=True)
        for position in (0, len(ids) // 2, len(ids) - 1):
            start, count = artwork.start[ids[position]], artwork.count[ids[position]]
            art = torch.from_numpy(images[position]).permute(2, 0, 1)
            assert any(torch.equal(image, art) for image in artwork.images[start : start + count])


def test_batch_size_must_fit(artwork):
    with pytest.raises(ValueError, match=r"1\.\.2067, got 0"):
        loader(artwork, batch_size=0)


def test_curriculum_goes_from_names_to_everything(artwork, captions):
    made = loader(artwork, max_epoch=8)
    amounts = []
    for epoch in range(8):
        made.set_epoch(epoch, 8)
        amounts.append(made.amount)
    assert amounts == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    ids = list(range(0, 1592, 3))
    names = [concepts()[i].label for i in ids]
    generator = torch.Generator().manual_seed(0)
    assert captions.draw(ids, 0.0, generator)[0] == names
    shares = []
    for amount in (0.25, 0.5, 1.0):
        drawn = captions.draw(ids, amount, generator)[0]
        shares.append(np.mean([text == name for text, name in zip(drawn, names)]))
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < 0.25


def test_captions_use_every_kind_of_term(captions):
    eagle = index("eagle")
    drawn = captions.draw([eagle] * 3000, 1.0, torch.Generator().manual_seed(0))[0]
    assert "a photo of a eagle." in drawn
    assert "a picture of a bird." in drawn
    assert any("animal bird" in text for text in drawn)
    assert any(re.search(rf"\b{re.escape(tag)}\b", text) for tag in concepts()[eagle].tags for text in drawn)
    assert any(re.search(r"eagle, a (kind|type) of bird", text) for text in drawn)
    nurse = concept_ids()["1F469-200D-2695"]  # woman health worker: its fine class is "health worker"
    drawn = captions.draw([nurse] * 500, 1.0, torch.Generator().manual_seed(0))[0]
    assert any(text.endswith("a health worker.") for text in drawn)
    assert "a photo of a {}." in TEMPLATES


def test_every_class_name_is_a_caption_term(captions):
    terms = set(captions.terms)
    assert set(benchmark()["groups"]) <= terms
    for table in benchmark()["fine"].values():
        assert set(table) <= terms


def test_truth_is_true(captions):
    position = {term: row for row, term in enumerate(captions.terms)}
    birds = {concept_ids()[code] for code in benchmark()["groups"]["bird"]}
    said = set(captions.truth[position["bird"]].nonzero()[:, 0].tolist())
    assert birds <= said
    assert all("bird" in concepts()[i].tags or concepts()[i].label == "bird" for i in said - birds)
    assert captions.truth[position["hibiscus"]].nonzero()[:, 0].tolist() == [index("hibiscus")]
    texts, terms = captions.draw(list(range(1592)), 1.0, torch.Generator().manual_seed(4))
    assert all(captions.truth[term, i] for i, term in enumerate(terms.tolist()))
    assert all(captions.terms[term] in text for term, text in zip(terms.tolist(), texts))


def test_positive_marks_what_a_caption_is_true_of(artwork):
    made = loader(artwork)
    eagle, owl, hibiscus = (index(name) for name in ("eagle", "owl", "hibiscus"))
    rows = artwork.start[torch.tensor([eagle, owl, hibiscus, eagle])]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        batch = made.batch(rows, 1.0, generator)
        own = batch["label"][:, None] == batch["label"]
        assert batch["positive"][own].all()
        if re.fullmatch(r".*\bbird\.?", batch["text"][1]):
            assert batch["positive"][:, 1].tolist() == [True, True, False, True]
            return
    pytest.fail("no caption called the owl a bird")


def test_subgroup_phrases():
    assert subgroup_phrase("face-smiling") == "smiling face"
    assert subgroup_phrase("animal-bird") == "animal bird"
    assert subgroup_phrase("musical-instrument") == "musical instrument"


def test_direction_is_kept():
    for label in ("right arrow", "four o’clock", "backhand index pointing left", "first quarter moon", "play button"):
        concept = concepts()[index(label)]
        assert is_upright(concept.label, concept.subgroup)
    for label in ("eagle", "hibiscus", "rocket", "grinning face"):
        concept = concepts()[index(label)]
        assert not is_upright(concept.label, concept.subgroup)


def still(**changes):
    """No change of the artwork but those given."""
    nothing = {"scale": (1.0, 1.0), **dict.fromkeys(augment.Strength._fields[1:], 0.0)}
    return augment.Strength(**{**nothing, **changes})


def square(color, side=32):
    """Premultiplied RGBA with an opaque square in the middle: (1, 4, 64, 64)."""
    art = torch.zeros(1, 4, 64, 64, dtype=torch.uint8)
    low = 32 - side // 2
    art[0, :, low : low + side, low : low + side] = torch.tensor([*color, 255], dtype=torch.uint8)[:, None, None]
    return art


def paint(art, strength, seed=0, mono=False, upright=False, amount=1.0):
    n = len(art)
    flags = torch.full((n,), mono), torch.full((n,), upright)
    generator = torch.Generator().manual_seed(seed)
    return plain(artist(strength)(art, augment.contours(art)[:, :1], *flags, amount, generator))


def test_without_changes_the_artwork_lies_on_light_paper():
    picture = paint(square((200, 30, 10)), still())[0]
    expected = torch.tensor([200, 30, 10]) / 255
    assert torch.allclose(picture[:, 18:46, 18:46], expected[:, None, None].expand(3, 28, 28), atol=1e-5)
    assert picture[:, :14].min() >= 0.88 - 1e-5


def test_mirroring_spares_upright_drawings():
    art = square((255, 0, 0))
    art[:, :, :, 32:] = 0  # left half only
    mirrored = paint(art, still(flip=1.0))[0]
    kept = paint(art, still(flip=1.0), upright=True)[0]
    assert mirrored[1, 32, 40] < 0.1
    assert mirrored[1, 32, 24] > 0.5
    assert kept[1, 32, 24] < 0.1
    assert kept[1, 32, 40] > 0.5


def test_gray_has_equal_channels():
    inner = paint(square((200, 30, 10)), still(gray=1.0))[0, :, 20:44, 20:44]
    luma = 0.299 * 200 / 255 + 0.587 * 30 / 255 + 0.114 * 10 / 255
    assert torch.allclose(inner, torch.full_like(inner, luma), atol=1e-4)


def test_line_art_stands_out_from_any_paper():
    art = square((0, 0, 0)).expand(200, 4, 64, 64)
    pictures = paint(art, still(recolor=1.0, busy=1.0, gradient=1.0), mono=True)
    ink = pictures[:, :, 24:40, 24:40].mean((1, 2, 3))
    paper = torch.cat([pictures[..., :8, :].flatten(1), pictures[..., -8:, :].flatten(1)], 1).mean(1)
    assert (ink - paper).abs().min() > 0.1
    assert 0.2 < (ink > paper).float().mean() < 0.6


def test_contours_lie_on_the_edge():
    thin, thick, dark, _ = augment.contours(square((20, 20, 20)))[0]
    assert thin[32, 32] == 0
    assert thin[32, 16] > 200
    assert thin[2, 2] == 0
    assert (thick > 100).sum() > (thin > 100).sum()
    two = square((250, 250, 250))
    two[0, :3, 28:36, 28:36] = 10
    dark = augment.contours(two)[0, 2]
    assert dark[32, 32] > 200
    assert dark[22, 22] < 60


def test_line_art_replaces_colour_artwork():
    pictures = paint(square((250, 200, 60)), still(line_art=1.0))[0]
    assert pictures[:, 32, 32].min() >= 0.5  # the inside is paper
    assert pictures[:, 32, 16].max() < 0.3  # the edge is ink


def test_weak_at_first_strong_later():
    art = square((200, 30, 10)).expand(64, 4, 64, 64)
    weak, strong = (paint(art, augment.Strength(), amount=amount, seed=1) for amount in (0.0, 1.0))
    assert weak.std(0).mean() < 0.5 * strong.std(0).mean()
    corners = weak[:, :, :3, :3].mean((2, 3))
    assert corners.min() > 0.5  # light paper only


def test_picture_size_follows_the_model(artwork):
    made = CaptionLoader(artwork, artist(size=48), 4, 10, 0)
    assert next(iter(made))["img"].shape == (4, 3, 48, 48)


def test_icons_join_the_corpus(tmp_path):
    rows = [["mdi", "eagle", index("eagle")], ["mdi", "left clamp", -1], ["ph", "left clamp", -1]]
    images = np.zeros((3, 64, 64, 4), dtype=np.uint8)
    images[:, 16:48, 16:48, 3] = 255
    images[2, 16:48, 16:48, 0] = 200
    path = tmp_path / "icons.xz"
    assert icons.load_icons(path) is None
    icons.save_icons(path, rows, images)
    art = Artwork(("fxemoji",), icons.load_icons(path))
    assert art.concept[640:].tolist() == [index("eagle"), 1592, 1592]
    assert art.mono[640:].tolist() == [True, True, False]
    made = loader(art, batch_size=40)
    batch = next(iter(made))
    assert (made.icons, len(batch["img"])) == (6, 40)
    assert set(batch["label"][-6:].tolist()) <= {index("eagle"), 1592}
    assert set(batch["label"][:-6].tolist()) <= set(load_style("fxemoji")[0].tolist())
    assert made.captions.upright[1592]
    (tmp_path / "icons.json").write_text("[]")
    with pytest.raises(ValueError, match="3 images but 0 names"):
        icons.load_icons(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat-face-fill", ("cat face", "fill")),
        ("tree-bold-duotone", ("tree", "bold-duotone")),
        ("eagle", ("eagle", "")),
        ("github-logo", ("", "")),
        ("numeric-7-box", ("", "")),
        ("a", ("", "")),
        ("one-two-many-words-here-now", ("", "")),
    ],
)
def test_names_of_icons(name, expected):
    assert icons.clean_name(name) == expected


def test_one_icon_per_name_and_variant():
    names = ["cat", "cat-bold", "cat-fill", "cat-thin", "dog-fill"]
    assert list(icons.choose("ph", names)) == [("cat", "cat"), ("cat-fill", "cat"), ("dog-fill", "dog")]
    assert list(icons.choose("mdi", names)) == [("cat", "cat"), ("dog-fill", "dog")]


def test_a_batch_is_made_quickly(artwork):
    made = loader(artwork, batch_size=256)
    made.set_epoch(9, 10)
    stream = iter(made)
    next(stream)
    start = time.perf_counter()
    next(stream)
    assert time.perf_counter() - start < 2  # about 0.05 s on an idle core
