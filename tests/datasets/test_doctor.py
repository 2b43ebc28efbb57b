"""The doctor on a folder that is right, and on each way in which it can be wrong."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from known_trees import write_golden_tree, write_image
from PIL import Image

from dassl.data.fingerprint import classnames_hash
from datasets.doctor import as_markdown, main
from datasets.few_shot import read_split
from datasets.prepare import health
from datasets.prepare.catalog import CATALOG
from datasets.prepare.health import Report, examine
from datasets.prepare.sources import SOURCES, checksums
from datasets.standard import make_split, picks_hash


def write_noise(path, seed):
    """An image that no other one equals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix == ".png" else "JPEG")


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    """EuroSAT with three classes of ten images, all different, with the split as its published one."""
    root = tmp_path_factory.mktemp("pattern")
    folder = root / "eurosat"
    for number in range(30):
        write_noise(folder / "2750" / ("Forest", "Highway", "River")[number % 3] / f"{number}.jpg", number)
    split = make_split("EuroSAT", root)
    split.rename(folder / "split_zhou_EuroSAT.json")
    return root


@pytest.fixture
def eurosat(pattern, tmp_path, monkeypatch):
    """A copy of it, known to the catalogue; returns the data root and the folder."""
    root, folder = tmp_path / "data", tmp_path / "data" / "eurosat"
    shutil.copytree(pattern, root)
    split = folder / "split_zhou_EuroSAT.json"
    train, val, test = read_split(split, folder / "2750")
    names = ["Forest", "Highway or Road", "River"]
    info = replace(
        CATALOG["EuroSAT"],
        classes=3,
        train=len(train),
        val=len(val),
        test=len(test),
        names_sha256=classnames_hash(names),
        picks_sha256=picks_hash(train, val, str(folder / "2750")),
    )
    monkeypatch.setitem(CATALOG, "EuroSAT", info)
    source = replace(SOURCES["EuroSAT"][0], checks={"sha256": checksums(split)["sha256"]})
    monkeypatch.setitem(SOURCES, "EuroSAT", (source, *SOURCES["EuroSAT"][1:]))
    return root, folder


def found(report, level="error"):
    return [finding for finding in report.findings if finding.level == level]


def the_error(root, **options):
    """The only error of EuroSAT."""
    report = examine("EuroSAT", root, **options)
    assert not report.ok
    (finding,) = found(report)
    return finding


def change_split(folder, change):
    path = folder / "split_zhou_EuroSAT.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_folder_that_is_right(eurosat):
    root, _ = eurosat
    before = sorted(root.rglob("*"))
    report = examine("EuroSAT", root)
    assert (report.ok, report.findings, report.split) == (True, [], "published")
    assert (report.counts, report.classes) == ({"train": 15, "val": 6, "test": 9}, 3)
    assert report.hashes["class names"] == CATALOG["EuroSAT"].names_sha256
    assert report.hashes["16-shot picks of seed 1"] == CATALOG["EuroSAT"].picks_sha256
    assert report.hashes["split_zhou_EuroSAT.json"] == SOURCES["EuroSAT"][0].checks["sha256"]
    assert report.decoded == 30
    assert sorted(root.rglob("*")) == before
    assert examine("EuroSAT", root, samples=7).decoded == 7
    assert examine("EuroSAT", root, samples=7, full=True).decoded == 30


def test_no_root_and_no_folder(eurosat, tmp_path):
    root, folder = eurosat
    assert "no data root" in the_error(tmp_path / "none").text
    folder.rename(root / "EUROSAT")
    finding = the_error(root)
    assert finding.text == 'there is no folder "eurosat" in the data root, but there is "EUROSAT"'
    assert finding.fix == f"ln -s {root / 'EUROSAT'} {folder}"
    shutil.rmtree(root / "EUROSAT")
    assert the_error(root).fix == f"python -m datasets.prepare EuroSAT --root {root}"


def test_folders_of_torchvision_are_recognised(tmp_path):
    (tmp_path / "flowers-102").mkdir()
    (finding,) = examine("OxfordFlowers", tmp_path).findings
    assert finding.fix == f"ln -s {tmp_path / 'flowers-102'} {tmp_path / 'oxford_flowers'}"


def test_folders_of_archives_are_put_one_deeper(tmp_path):
    write_noise(tmp_path / "SUN397" / "a" / "1.jpg", 1)
    (finding,) = examine("SUN397", tmp_path).findings
    assert finding.text.endswith('but there is "SUN397"')
    os.system(finding.fix)
    assert (tmp_path / "sun397" / "SUN397" / "a" / "1.jpg").is_file()


def test_cars_have_two_folders_of_images(tmp_path):
    root = write_golden_tree(tmp_path)
    split = make_split("StanfordCars", root)
    split.rename(split.with_name("split_zhou_StanfordCars.json"))
    (root / "stanford_cars" / "cars_test" / "00001.jpg").write_bytes(b"")
    (finding,) = found(examine("StanfordCars", root), "error")[-1:]
    assert "cars_test/00001.jpg" in finding.text
    test = root / "stanford_cars" / "cars_test"
    assert finding.fix == f"mv {test} {test}.old && python -m datasets.prepare StanfordCars --root {root}"


def test_images_one_folder_too_deep(eurosat):
    root, folder = eurosat
    (folder / "EuroSAT").mkdir()
    (folder / "2750").rename(folder / "EuroSAT" / "2750")
    finding = the_error(root)
    assert finding.text == 'there is no "2750", but there is "EuroSAT/2750"'
    assert finding.fix == f"mv {folder / 'EuroSAT' / '2750'} {folder / '2750'}"
    os.system(finding.fix)
    assert examine("EuroSAT", root).ok


def test_no_images_and_an_empty_folder(eurosat):
    root, folder = eurosat
    shutil.rmtree(folder / "2750")
    assert the_error(root).text == 'there is no "2750"'
    (folder / "2750").mkdir()
    finding = the_error(root)
    assert (finding.text, finding.fix) == ('"2750" is empty', f"python -m datasets.prepare EuroSAT --root {root}")


def test_no_split_file_and_a_made_one(eurosat):
    root, folder = eurosat
    (folder / "split_zhou_EuroSAT.json").unlink()
    assert the_error(root).text == 'there is no split file "split_zhou_EuroSAT.json"'
    make_split("EuroSAT", root)
    report = examine("EuroSAT", root)
    assert report.ok
    assert report.split == "self-made"
    (warning,) = found(report, "warning")
    assert "results cannot be compared" in warning.text


def test_a_damaged_split_file(eurosat):
    root, folder = eurosat
    (folder / "split_zhou_EuroSAT.json").write_text("{")
    finding = the_error(root)
    assert "is not a JSON file" in finding.text
    assert finding.fix.startswith(f"mv {folder / 'split_zhou_EuroSAT.json'} ")


def test_another_split_under_the_official_name(eurosat):
    root, folder = eurosat
    change_split(folder, lambda content: content["train"].reverse())
    finding = the_error(root)
    assert "other items, or another order" in finding.text
    split = folder / "split_zhou_EuroSAT.json"
    assert finding.fix == f"mv {split} {split}.old && python -m datasets.prepare EuroSAT --root {root}"
    assert examine("EuroSAT", root).split == "unrecognised"


def test_the_published_split_in_another_form(eurosat):
    root, folder = eurosat
    change_split(folder, lambda content: None)
    report = examine("EuroSAT", root)
    assert (report.ok, report.split) == (True, "published")
    (note,) = found(report, "note")
    assert "other bytes than known" in note.text


def test_counts_and_class_names(eurosat):
    root, folder = eurosat
    change_split(folder, lambda content: content["test"].pop())
    assert the_error(root).text == "not the published data: 8 test images instead of 9"

    def rename(content):
        content["test"].append(["River/2.jpg", 2, "River"])
        for part in content.values():
            part[:] = [[path, label, name.lower()] for path, label, name in part]

    change_split(folder, rename)
    assert any(
        finding.text == "not the published data: other class names" for finding in examine("EuroSAT", root).findings
    )


def test_missing_images(eurosat):
    root, folder = eurosat
    (folder / "2750" / "River" / "2.jpg").unlink()
    shutil.rmtree(folder / "2750" / "Forest")
    finding = the_error(root)
    assert finding.text.startswith("11 of 30 images are missing: 2750/")
    images = folder / "2750"
    assert finding.fix == f"mv {images} {images}.old && python -m datasets.prepare EuroSAT --root {root}"


def test_renamed_images(eurosat):
    root, folder = eurosat
    for path in (folder / "2750" / "River").iterdir():
        path.rename(path.with_suffix(".JPG"))
    assert '.JPG": names of files were changed' in the_error(root).text


def test_images_that_cannot_be_decoded(eurosat):
    root, folder = eurosat
    (folder / "2750" / "River" / "2.jpg").write_bytes(b"")
    whole = (folder / "2750" / "Forest" / "0.jpg").read_bytes()
    (folder / "2750" / "Forest" / "0.jpg").write_bytes(whole[: len(whole) // 2])
    finding = the_error(root, full=True)
    assert finding.text.startswith("2 of 30 images cannot be decoded: ")
    assert "2750/River/2.jpg" in finding.text
    assert "2750/Forest/0.jpg" in finding.text


def test_the_same_image_in_training_and_test(eurosat):
    root, folder = eurosat
    content = json.loads((folder / "split_zhou_EuroSAT.json").read_text())
    train, test = content["train"][0][0], content["test"][0][0]
    shutil.copyfile(folder / "2750" / train, folder / "2750" / test)
    report = examine("EuroSAT", root)
    assert report.ok
    (warning,) = report.findings
    assert warning.text == f"1 test images have the content of a training image: 2750/{train} = 2750/{test}"
    assert warning.fix == "none: the published data is so"
    assert main(["EuroSAT", "--root", str(root), "--quiet"]) == 0
    assert main(["EuroSAT", "--root", str(root), "--quiet", "--strict"]) == 1

    def leak(content):
        content["test"][0] = content["train"][0]

    change_split(folder, leak)
    assert any("1 images are in training and in test" in finding.text for finding in found(examine("EuroSAT", root)))


def test_large_sets_are_compared_on_request(eurosat, monkeypatch):
    root, _ = eurosat
    monkeypatch.setattr(health, "LARGE", 30)
    report = examine("EuroSAT", root)
    assert (report.ok, report.compared) == (True, 0)
    assert "--full" in report.findings[0].text
    assert examine("EuroSAT", root, full=True).findings == []


def test_class_names_of_imagenet(tmp_path, monkeypatch):
    folder = tmp_path / "imagenet-adversarial"
    for number, wnid in enumerate(["n01", "n02"]):
        write_noise(folder / "imagenet-a" / wnid / "1.jpg", number)
    (folder / "classnames.txt").write_text("n01 tench\nn02 goldfish\n")
    monkeypatch.setitem(CATALOG, "ImageNetA", replace(CATALOG["ImageNetA"], classes=2, test=2))
    (finding,) = examine("ImageNetA", tmp_path).findings
    assert (finding.level, finding.check) == ("error", "class names")
    assert "classnames.txt is not the published one" in finding.text
    assert "classnames.txt.old && python -m datasets.prepare ImageNetA" in finding.fix
    # readers also take the list in imagenet/
    (tmp_path / "imagenet").mkdir()
    (folder / "classnames.txt").rename(tmp_path / "imagenet" / "classnames.txt")
    report = examine("ImageNetA", tmp_path)
    assert report.counts == {"train": 2, "val": 0, "test": 2}
    (tmp_path / "imagenet" / "classnames.txt").unlink()
    (finding,) = examine("ImageNetA", tmp_path).findings
    assert finding.text == 'there is no "classnames.txt"'


def test_lists_of_aircraft(tmp_path):
    root = write_golden_tree(tmp_path)
    (root / "fgvc_aircraft" / "variants.txt").rename(root / "fgvc_aircraft" / "images" / "variants.txt")
    (finding,) = found(examine("FGVCAircraft", root))
    assert finding.fix == f"mv {root}/fgvc_aircraft/images/variants.txt {root}/fgvc_aircraft/variants.txt"
    os.system(finding.fix)
    report = examine("FGVCAircraft", root)
    assert {finding.check for finding in found(report)} == {"split"}
    assert any("training images instead of 3334" in finding.text for finding in found(report))


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read(eurosat):
    root, folder = eurosat
    os.chmod(folder / "2750", 0)
    try:
        assert "may not be read" in the_error(root).text
    finally:
        os.chmod(folder / "2750", 0o755)


def test_faults_of_rights_are_reported(eurosat, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "some/file")

    monkeypatch.setattr(health, "_read", refuse)
    finding = the_error(eurosat[0])
    assert (finding.text, finding.fix) == ('"some/file" may not be read', f"chmod -R u+rX {eurosat[1]}")


def test_command_line_and_reports(eurosat, tmp_path, capsys):
    root, folder = eurosat
    files = ["--json", str(tmp_path / "r" / "report.json"), "--markdown", str(tmp_path / "r" / "report.md"), "--quiet"]
    assert main(["--root", str(root), *files]) == 0
    assert "EuroSAT: ok" in capsys.readouterr().out
    (plain,) = json.loads((tmp_path / "r" / "report.json").read_text())
    assert (plain["ok"], plain["split"], plain["counts"]) == (True, "published", {"train": 15, "val": 6, "test": 9})
    assert "| EuroSAT | ok | 15 | 6 | 9 | 3 | published | 30 |" in (tmp_path / "r" / "report.md").read_text()
    (folder / "2750" / "River" / "2.jpg").unlink()
    assert main(["eurosat", "food101", "--root", str(root), *files]) == 1
    shown = capsys.readouterr().out
    assert "to do: mv " in shown
    assert "not in order: EuroSAT, Food101" in shown
    first, second = json.loads((tmp_path / "r" / "report.json").read_text())
    assert (first["ok"], first["findings"][0]["check"], second["findings"][0]["check"]) == (False, "images", "layout")
    text = (tmp_path / "r" / "report.md").read_text()
    assert "| EuroSAT | 1 error |" in text
    assert "- to do: `python -m datasets.prepare Food101" in text


def test_nothing_there_and_unusable_commands(tmp_path, capsys):
    assert main(["--root", str(tmp_path)]) == 1
    assert "there is no known data set" in capsys.readouterr().out
    for command in (["NoSuchSet", "--root", "x"], ["EuroSAT"], ["--root", "x", "--samples", "0"]):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 2


def test_plural_in_markdown():
    report = Report("EuroSAT", "x")
    for _ in range(2):
        report.add("error", "images", "text")
    report.add("warning", "images", "text")
    assert "| EuroSAT | 2 errors, 1 warning | - | - | - |" in as_markdown([report])


def test_every_reader_can_be_looked_over(tmp_path):
    """Each data set of the golden tree: read, counted, found to be no published data, and nothing raises."""
    root = write_golden_tree(tmp_path)
    write_image(root / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / "1" / "1.jpeg")
    for name, info in CATALOG.items():
        if not (root / info.folder).is_dir():
            continue
        if info.split_file:
            make_split(name, root).rename(root / info.folder / info.split_file)
        report = examine(name, root)
        assert not report.ok
        if name != "ImageNetV2":  # its folders are empty in this tree
            assert report.counts["test"] > 0, name
            assert report.decoded > 0
