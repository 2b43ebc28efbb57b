"""The page to try a model: its answers, and the page itself in a browser without a screen."""

import importlib.util
import json
import shutil
import sys

import numpy as np
import pytest
from loaded_models import NAMES
from PIL import Image

from align_prompt import demo
from align_prompt.__main__ import main
from align_prompt.explain.attention import method_maps
from tests.short_options import SHORT

CHROME = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(autouse=True)
def _no_analytics(monkeypatch):
    """Undoes what the page sets for its process."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")


def test_answers_are_those_of_the_model(trained, pictures):
    model = trained("ALIGN", *SHORT["ALIGN"])
    page, picture, names = demo.Demo(model, 2), Image.open(pictures[0]), "\n".join(NAMES)
    expected = model.predict([pictures[0]])[0].top
    assert page.answer(picture, names) == (dict(expected[:2]), [name for name, _ in expected[:2]], "")
    assert page.answer(None, names) == ({}, [], "")
    found, best, _ = page.answer(picture, " dog \n\nred heart\n")
    assert set(found) == set(best) == {"dog", "red heart"}
    values = method_maps(model, next(iter(model.image_batches([pictures[0]]))), 1).gradient.mean(dim=0).numpy()
    seen = np.asarray(page.heat_map(picture, "dog\nred heart", "red heart", "gradient")).astype(int)
    half = demo.SIDE // 2
    red = [seen[:half, :half], seen[:half, half:], seen[half:, :half], seen[half:, half:]]
    assert np.argmax([part[..., 0].mean() for part in red]) == values.argmax()  # inferno: dark is least
    assert page.heat_map(picture, names, None, "gradient") is None
    assert len(page.figures(picture, names, NAMES[0])) == 4  # two of the tokens, the prompts, the maps


def test_classes_that_a_method_cannot_change_are_said(trained, pictures):
    page, picture = demo.Demo(trained("LAMM"), 5), Image.open(pictures[0])
    assert page.answer(picture, "dog\nred heart") == ({}, [], page.answer(picture, "dog\nred heart")[2])
    assert "LAMM cannot change its classes" in page.answer(picture, "dog\nred heart")[2]
    assert page.answer(picture, "\n".join(NAMES))[2] == ""
    assert "no classes" in page.answer(picture, "\n")[2]


def test_a_map_that_is_the_same_everywhere():
    assert demo.overlay(np.zeros((4, 4, 3), np.float32), np.zeros((2, 2), np.float32)).size == (demo.SIDE, demo.SIDE)


def test_gradio_is_named_when_it_is_missing(backbone, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", backbone, "--classes", "cat", "--device", "cpu"]) == 2
    assert "the demo needs gradio: pip install 'gradio>=6'" in capsys.readouterr().err
    assert main(["demo", backbone, "--top", "0"]) == 2


@pytest.fixture
def browser():
    """A Chromium without a screen that records what it asks the network for."""
    if not (CHROME and DRIVER):
        pytest.skip("needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.implicitly_wait(60)
    yield driver
    driver.quit()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio")
def test_the_page_in_a_browser(browser, trained, pictures):
    model = trained("CoOp")
    page = demo.build_page(model, 2)
    address = demo.open_page(page, None, wait=False)
    try:
        check_page(browser, address, model, pictures[0])
    finally:
        page.close()


def check_page(browser, address, model, picture):
    from selenium.webdriver.support.ui import WebDriverWait

    def shows(*texts):
        wait = WebDriverWait(browser, 120, ignored_exceptions=(Exception,))
        wait.until(lambda _: all(text in browser.find_element("tag name", "body").text for text in texts))

    browser.set_window_size(390, 844)
    browser.get(address)
    assert browser.find_element("css selector", "h1").text == "CoOp on tiny.safetensors"
    assert browser.find_element("css selector", "textarea").get_property("value").splitlines() == NAMES
    browser.find_element("css selector", "input[type=file]").send_keys(picture)
    best = model.predict([picture], top=2)[0].top
    shows(*(name for name, _ in best), *(f"{100 * value:.0f}%" for _, value in best))
    WebDriverWait(browser, 120).until(lambda _: browser.find_elements("css selector", "#heat_map img"))
    box = browser.find_element("css selector", "textarea")
    box.clear()
    box.send_keys("otter\nred panda")
    browser.find_element("xpath", "//button[text()='Classify']").click()
    shows("otter\n", "red panda\n")
    assert set(model.classnames) == {"otter", "red panda"}
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"}
    assert len(asked) > 3
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
