"""Fetching published weights from a server on this machine: resume, checks, failures."""

import hashlib
import http.server
import threading
from pathlib import Path

import pytest
import torch

import clip
from clip import api as module
from clip.download import download

DATA = bytes(range(256)) * 2000


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        if self.path.endswith("gone.pt"):
            self.send_error(404)
            return
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and server.ranges else 0
        if start >= len(server.data) and start:
            self.send_error(416)
            return
        body = server.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = body[: server.stop_after] if server.breaks > 0 else body
        server.breaks -= 1
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.data, server.ranges, server.breaks, server.stop_after, server.requests = DATA, True, 0, 100_000, []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}/clip/models/{hashlib.sha256(DATA).hexdigest()}/m.pt"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_every_published_name_has_an_address_with_its_sha256():
    assert clip.available_models() == [*module.MODELS, "emoji-ViT-S/8", "emoji_vit_s8_tokens"]
    names = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"]
    assert list(module.MODELS) == names
    open_clip = pytest.importorskip("open_clip")
    theirs = {config["url"] for tags in open_clip.pretrained._PRETRAINED.values() for config in tags.values()}
    for url in module.MODELS.values():
        assert len(url.split("/")[-2]) == 64
        assert url in theirs


def test_fetches_once(server, tmp_path):
    path = download(server.url, tmp_path / "new" / "folder")
    assert Path(path).read_bytes() == DATA
    assert download(server.url, tmp_path / "new" / "folder") == path
    assert server.requests == [None]


def test_goes_on_after_interruptions(server, tmp_path):
    server.breaks = 2
    path = download(server.url, tmp_path, pause=0)
    assert Path(path).read_bytes() == DATA
    assert server.requests == [None, "bytes=100000-", "bytes=200000-"]


def test_a_later_call_goes_on_where_the_first_gave_up(server, tmp_path):
    server.breaks = 1
    with pytest.raises(ConnectionError, match=r"put it at .*m\.pt"):
        download(server.url, tmp_path, attempts=1)
    assert not (tmp_path / "m.pt").exists()
    assert (tmp_path / "m.pt.part").stat().st_size == 100_000
    assert Path(download(server.url, tmp_path)).read_bytes() == DATA
    assert server.requests == [None, "bytes=100000-"]
    assert not (tmp_path / "m.pt.part").exists()


def test_starts_over_where_the_server_cannot_go_on(server, tmp_path):
    server.ranges = False
    (tmp_path / "m.pt.part").write_bytes(DATA[:5000])
    assert Path(download(server.url, tmp_path)).read_bytes() == DATA


def test_a_complete_part_is_taken(server, tmp_path):
    (tmp_path / "m.pt.part").write_bytes(DATA)
    assert Path(download(server.url, tmp_path)).read_bytes() == DATA


def test_wrong_content_is_deleted(server, tmp_path):
    server.data = DATA[:-1] + b"x"
    with pytest.raises(ValueError, match="arrived with sha256"):
        download(server.url, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    (tmp_path / "m.pt.part").write_bytes(b"of another file")
    server.data = DATA
    with pytest.raises(ValueError, match="try again"):
        download(server.url, tmp_path)
    assert Path(download(server.url, tmp_path)).read_bytes() == DATA


def test_a_damaged_file_is_fetched_again(server, tmp_path, caplog):
    (tmp_path / "m.pt").write_bytes(b"damaged")
    assert Path(download(server.url, tmp_path)).read_bytes() == DATA
    assert "fetched again" in caplog.text


def test_refused_and_unreachable_addresses_say_where_to_put_the_file(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"404.*put it at"):
        download(server.url.replace("m.pt", "gone.pt"), tmp_path)
    assert len(server.requests) == 1
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"put it at .*m\.pt \(sha256 "):
        download(server.url, tmp_path, attempts=2, pause=0)
    (tmp_path / "dir" / "m.pt").mkdir(parents=True)
    with pytest.raises(ValueError, match="is not a file"):
        download(server.url, tmp_path / "dir")


def test_load_of_a_name_fetches_and_reads(server, tmp_path, make_clip, images, monkeypatch):
    model = make_clip(transformer_heads=1, vision_heads=1)
    torch.save({**model.state_dict(), "input_resolution": torch.tensor(32)}, tmp_path / "weights")
    server.data = (tmp_path / "weights").read_bytes()
    place, name = server.url.rsplit("/", 2)[0], "ViT-B-32.pt"
    monkeypatch.setitem(module.MODELS, "ViT-B/32", f"{place}/{hashlib.sha256(server.data).hexdigest()}/{name}")
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded, _ = clip.load("ViT-B/32")
    assert (tmp_path / ".cache" / "clip" / name).is_file()
    assert torch.equal(loaded.encode_image(images).pooled, model.encode_image(images).pooled)
    clip.load("ViT-B/32", download_root=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / name).is_file()


@pytest.mark.parametrize("name", module.EMBEDDED)
def test_embedded_weights_are_there_by_name(name):
    loaded, _ = clip.load(name)
    assert (loaded.visual.input_resolution, loaded.visual.patch_size, loaded.vocab_size) == (64, 8, 8192)


def test_missing_embedded_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(module.EMBEDDED, "emoji-ViT-S/8", tmp_path / "emoji_vit_s8.safetensors")
    with pytest.raises(FileNotFoundError, match=r"'emoji-ViT-S/8' are missing at .*emoji_vit_s8\.safetensors"):
        clip.load("emoji-ViT-S/8")


def test_embedded_weights_load_by_name(monkeypatch, tmp_path, tiny, images):
    clip.save_model(tiny, tmp_path / "e.safetensors")
    monkeypatch.setitem(module.EMBEDDED, "emoji-ViT-S/8", tmp_path / "e.safetensors")
    loaded, _ = clip.load("emoji-ViT-S/8")
    torch.testing.assert_close(loaded.encode_image(images).pooled, tiny.encode_image(images).pooled)
