"""Registry, meters, seeds and small helpers."""

import random
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from dassl import utils


def test_registry():
    registry = utils.Registry("THING")

    @registry.register()
    class First:
        pass

    class Second:
        pass

    registry.register(Second)
    assert registry.registered_names() == ["First", "Second"]
    assert registry.get("Second") is Second
    with pytest.raises(KeyError, match='"First" was already registered in "THING"'):
        registry.register(First)
    registry.register(First, force=True)
    registry.register(First, name="first")
    assert registry.get("first") is First
    with pytest.raises(KeyError, match="first"):
        registry.register(Second, name="first")
    with pytest.raises(KeyError, match='"Third" does not exist in "THING"'):
        registry.get("Third")


def test_check_availability_suggests_the_closest():
    utils.check_availability("CoOp", ["CoOp", "ALIGN"])
    with pytest.raises(ValueError, match=r"is 'COOP' \(do you mean CoOp\?\), expected one of ALIGN, CoOp"):
        utils.check_availability("COOP", ["CoOp", "ALIGN"])
    with pytest.raises(ValueError, match="nothing is registered"):
        utils.check_availability("COOP", [])


def test_seed_fixes_every_generator():
    draws = []
    for _ in range(2):
        utils.set_random_seed(0)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    utils.set_random_seed(1)
    assert random.random() == random.Random(1).random()
    assert torch.initial_seed() == 1


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, None])
def test_seeds_out_of_range(seed):
    with pytest.raises(ValueError, match="expected an integer in"):
        utils.set_random_seed(seed)


def test_average_meter():
    meter = utils.AverageMeter()
    for value, n in ((1.0, 1), (4.0, 2)):
        meter.update(value, n)
    assert (meter.val, meter.avg, meter.count) == (4.0, 3.0, 3)
    smooth = utils.AverageMeter(ema=True)
    smooth.update(1.0)
    smooth.update(torch.tensor(1.0))
    assert smooth.avg == pytest.approx(0.19)


def test_metric_meter_prints_value_and_mean_in_order():
    meter = utils.MetricMeter()
    meter.update({"loss": 1.0, "acc": torch.tensor(50.0)})
    meter.update({"loss": 2.0, "acc": 100.0})
    meter.update(None)
    assert str(meter) == "loss 2.0000 (1.5000) acc 100.0000 (75.0000)"
    with pytest.raises(TypeError, match="must be a dictionary"):
        meter.update(3)


def test_read_image(tmp_path):
    Image.new("RGBA", (4, 3), (10, 20, 30, 255)).save(tmp_path / "a.png")
    image = utils.read_image(tmp_path / "a.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 3), (10, 20, 30))
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        utils.read_image(tmp_path / "absent.png")


def test_image_that_does_not_decode(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    for name in ("text.jpg", "cut.jpg"):
        with pytest.raises(ValueError, match=f"cannot decode the image .*{name}") as caught:
            utils.read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_listdir_nohidden(tmp_path):
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).touch()
    assert utils.listdir_nohidden(tmp_path, sort=True) == ["a", "b"]
    assert set(utils.listdir_nohidden(tmp_path)) == {"a", "b"}


def test_small_helpers(tmp_path, caplog):
    assert utils.tolist_if_not(1) == [1]
    assert utils.tolist_if_not([1]) == [1]
    assert utils.get_most_similar_str_to_a_from_b("oxford_pet", ["OxfordPets", "Food101"]) == "OxfordPets"
    assert utils.get_most_similar_str_to_a_from_b("a", []) is None
    utils.mkdir_if_missing(tmp_path / "a" / "b")
    utils.mkdir_if_missing(tmp_path / "a" / "b")
    assert not utils.check_isfile(tmp_path / "x.jpg")
    assert 'No file found at "' in caplog.text


def test_environment_is_text_and_plain_values(tmp_path):
    text = utils.collect_env_info()
    assert f"torch: {torch.__version__.split('+')[0]}" in text
    utils.write_json(utils.environment(), tmp_path / "env.json")
    assert utils.read_json(tmp_path / "env.json")["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_download_url(tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/good":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"content")
            else:
                self.send_error(404)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        utils.download_url(f"{address}/good", tmp_path / "new" / "file")
        assert (tmp_path / "new" / "file").read_bytes() == b"content"
        with pytest.raises(OSError, match=r"cannot download .*/bad"):
            utils.download_url(f"{address}/bad", tmp_path / "bad")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not list(tmp_path.glob("bad*"))
