"""EmojiScenes: what is written agrees in all layouts, with a recount from the pixels."""

import json

import numpy as np
import pytest
from PIL import Image

from dense.scenes import CODES, MARKER, NUMBERS, VISIBLE, class_names, draw_scene, run_lengths, write_scenes

COUNTS = {"training": 6, "validation_unseen": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("scenes") / "emoji_scenes"
    write_scenes(place, COUNTS, 128)
    return place


def decode(segmentation):
    """A plain loop over COCO's run lengths."""
    (height, width), value, flat = segmentation["size"], False, []
    for count in segmentation["counts"]:
        flat += [value] * count
        value = not value
    return np.array(flat).reshape(width, height).T


def test_thirty_classes_in_every_scene_one_to_six_drawings():
    assert len(set(CODES)) == len(set(class_names())) == 30
    counts = [len(draw_scene("training", number, 64).things) for number in range(60)]
    assert (min(counts), max(counts)) == (1, 6)


def test_a_scene_is_always_the_same_and_splits_differ():
    one, other, unseen = (draw_scene(split, 3) for split in ("training", "training", "validation_unseen"))
    assert np.array_equal(one.picture, other.picture)
    assert not np.array_equal(one.picture, unseen.picture)


def test_drawings_keep_most_of_their_pixels():
    for number in range(20):
        scene = draw_scene("validation", number)
        assert all(thing.mask.sum() > 100 for thing in scene.things)
        assert np.stack([thing.mask for thing in scene.things]).sum(0).max() == 1  # no pixel of two drawings
    assert 0 < VISIBLE < 1


def test_masks_boxes_and_label_maps_agree(folder):
    for split, count in COUNTS.items():
        coco = json.loads((folder / f"instances_{split}.json").read_text())
        assert len(coco["images"]) == count
        for image in coco["images"]:
            labels = np.array(Image.open(folder / "annotations" / split / image["file_name"]))
            rebuilt = np.zeros_like(labels)
            for entry in (one for one in coco["annotations"] if one["image_id"] == image["id"]):
                mask = decode(entry["segmentation"])
                assert mask.sum() == entry["area"]
                rows, columns = np.nonzero(mask)
                x, y, width, height = entry["bbox"]
                box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert (x, y, x + width, y + height) == box
                rebuilt[mask] = entry["category_id"]
            assert np.array_equal(rebuilt, labels)
            assert Image.open(folder / "images" / split / image["file_name"]).size == (128, 128)


def test_answers_are_true(folder):
    coco = json.loads((folder / "instances_training.json").read_text())
    names = {one["id"]: one["name"] for one in coco["categories"]}
    asked = [json.loads(line) for line in (folder / "questions_training.jsonl").read_text().splitlines()]
    answers = [json.loads(line) for line in (folder / "answers_training.jsonl").read_text().splitlines()]
    talks = json.loads((folder / "conversations_training.json").read_text())
    assert len(asked) == len(answers) == len(talks)
    kinds = set()
    for question, answer, talk in zip(asked, answers, talks):
        things = [one for one in coco["annotations"] if one["image_id"] == int(question["image"][:5])]
        found = [names[one["category_id"]] for one in things]
        words = question["text"].removesuffix("?")
        if question["category"] == "what":
            true = ", ".join(sorted(set(found)))
        elif question["category"] == "number":
            true = NUMBERS[len(found)]
        elif question["category"] == "count":
            true = NUMBERS[found.count(words.removeprefix("how many ").removesuffix(" are in the picture"))]
        else:
            one, other = words.removeprefix("is the ").split(" left of the ")
            middle = {name: entry["bbox"][0] + entry["bbox"][2] / 2 for name, entry in zip(found, things)}
            true = "yes" if middle[one] < middle[other] else "no"
        assert answer["text"] == true == talk["conversations"][1]["value"]
        assert talk["conversations"][0]["value"] == f"<image>\n{question['text']}"
        kinds.add(question["category"])
    assert kinds == {"what", "number", "count", "left"}


def test_run_lengths_begin_with_zeros():
    mask = np.array([[True, False], [True, True]])
    assert run_lengths(mask) == {"size": [2, 2], "counts": [0, 2, 1, 1]}
    assert run_lengths(~mask) == {"size": [2, 2], "counts": [2, 1, 1]}
    assert np.array_equal(decode(run_lengths(mask)), mask)


def test_a_finished_folder_is_kept_and_another_one_made_again(tmp_path):
    folder = tmp_path / "emoji_scenes"
    folder.mkdir()
    (folder / "left_over").touch()
    write_scenes(folder, {"training": 1}, 64)
    assert not (folder / "left_over").exists()
    before = (folder / MARKER).read_text()
    write_scenes(folder, {"training": 2}, 64)
    assert (folder / MARKER).read_text() == before
