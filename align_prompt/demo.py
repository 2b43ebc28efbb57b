"""A local page to try a model: drop a picture, read the classes, see where the model looked. Needs gradio."""

from __future__ import annotations

import html
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from align_prompt.explain.attention import method_maps
from align_prompt.explain.sections import picture_section, place_of, seen_picture
from align_prompt.model import Model

MAPS = ("gradient", "attention")  # what speaks for the class, what the image tower attends to
BUTTONS: Any = ["download", "fullscreen"]  # and none that shares a picture elsewhere
SIDE = 384  # pixels of a heat map
STYLE = "#message {border-left: 4px solid #b23a2f; padding-left: 0.8rem}"


class Demo:
    """The answers of the page. One at a time, because the classes belong to the model that all of them share."""

    def __init__(self, model: Model, top: int):
        self.model, self.top = model, top
        self.lock = threading.Lock()

    def answer(self, picture: Image.Image | None, names: str) -> tuple[dict[str, float], list[str], str]:
        """Probabilities of the best classes, their names, and a message, which is empty if all went well.

        Args:
            names: classes, one per line.
        """
        if picture is None:
            return {}, [], ""
        try:
            with self.lock:
                self._set_classes(names)
                best = self.model.predict([picture], self.top)[0].top
        except ValueError as err:
            return {}, [], str(err)
        return dict(best), [name for name, _ in best], ""

    def heat_map(self, picture: Image.Image | None, names: str, name: str | None, kind: str) -> Image.Image | None:
        """The picture, as the model sees it, under a map of a class (see MAPS), the mean over its visual prompts.

        Raises:
            ValueError: the method has no maps, or classes that cannot be used.
        """
        if picture is None or not name:
            return None
        with self.lock:
            self._set_classes(names)
            image = next(iter(self.model.image_batches([picture]))).to(self.model.device)
            maps = method_maps(self.model, image, place_of(self.model, name))
            return overlay(seen_picture(self.model, image[0]), getattr(maps, kind).mean(dim=0).numpy())

    def figures(self, picture: Image.Image | None, names: str, name: str | None) -> list[tuple[Image.Image, str]]:
        """Figures of `explain` with their captions."""
        if picture is None or not name:
            return []
        with self.lock, tempfile.TemporaryDirectory() as folder:
            self._set_classes(names)
            path = Path(folder, "picture.png")
            picture.save(path)
            section = picture_section(self.model, 1, str(path), name)
            return [(shown.image(), shown.caption) for shown in section.figures]

    def _set_classes(self, names: str) -> None:
        wanted = [line.strip() for line in names.splitlines() if line.strip()]
        if wanted != self.model.classnames:
            self.model.classnames = wanted


def overlay(picture: np.ndarray, values: np.ndarray) -> Image.Image:
    """Values (side, side), from their least to their most, as colors over the picture (H, W, 3) in gray."""
    from matplotlib import colormaps

    spread = float(np.ptp(values)) or 1.0
    colors = Image.fromarray(colormaps["inferno"]((values - values.min()) / spread, bytes=True)[..., :3])
    gray = Image.fromarray(((picture.mean(axis=-1) + 0.5) / 1.5 * 255).astype(np.uint8)).convert("RGB")
    size, nearest = (SIDE, SIDE), Image.Resampling.NEAREST
    return Image.blend(gray.resize(size, Image.Resampling.BICUBIC), colors.resize(size, nearest), 0.6)


def build_page(model: Model, top: int) -> Any:
    """The page as a gradio.Blocks.

    Raises:
        ImportError: gradio is missing.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError as err:
        raise ImportError("the demo needs gradio: pip install 'gradio>=6'") from err

    demo, bound = Demo(model, top), model.trainer.class_bound
    known = f"{len(model.classnames)} classes" if model.classnames else "no classes yet"
    origin = html.escape(f"{known}, from {model.source.origin}")
    title = f"{model.method} on {model.backbone_title}"
    info = f"One per line. {model.method} cannot change them." if bound else "One per line; write others to try them."

    def answer(picture: Any, names: str) -> tuple[Any, ...]:
        found, best, said = demo.answer(picture, names)
        message = gr.HTML(html.escape(said), visible=bool(said))
        return found or None, gr.Dropdown(choices=best, value=best[0] if best else None), message, []

    def look(*arguments: Any) -> Any:
        try:
            return gr.Image(demo.heat_map(*arguments), label="Heat map")
        except ValueError as err:
            return gr.Image(None, label=f"No heat map: {err}")

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{html.escape(title)}</h1><p>{origin}</p>")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(
                    type="pil", label="Picture", sources=["upload", "clipboard", "webcam"], height=320, buttons=[]
                )
                names = gr.Textbox(
                    "\n".join(model.classnames), label="Classes", info=info, lines=4, max_lines=8, interactive=not bound
                )
                button = gr.Button("Classify", variant="primary")
                message = gr.HTML(visible=False, elem_id="message")
            with gr.Column():
                answers = gr.Label(label="Probabilities", num_top_classes=top, elem_id="answers")
                seen = gr.Image(label="Heat map", interactive=False, height=320, elem_id="heat_map", buttons=BUTTONS)
                with gr.Row():
                    name = gr.Dropdown([], label="Of the class", min_width=140)
                    kind = gr.Radio(list(MAPS), value=MAPS[0], label="Map", min_width=180)
        with gr.Accordion("All figures of explain", open=False):
            more = gr.Button("Draw them")
            gallery = gr.Gallery(columns=2, object_fit="contain", label="Figures", preview=False, buttons=BUTTONS)
        outputs = [answers, name, message, gallery]
        for event in (picture.change, button.click):
            event(answer, [picture, names], outputs).then(look, [picture, names, name, kind], seen)
        for choice in (name, kind):
            choice.input(look, [picture, names, name, kind], seen)
        more.click(demo.figures, [picture, names, name], gallery)
    return page


def open_page(page: Any, port: int | None, wait: bool = True) -> str:
    """Serve the page on this machine alone until it is interrupted; returns its address.

    Raises:
        OSError: the port is taken.
    """
    import gradio as gr

    fonts: Any = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # nothing is fetched
    theme = gr.themes.Default(primary_hue="blue", **fonts).set(
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
    )
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        ssr_mode=False,
        quiet=True,
        show_error=True,
        footer_links=[],
        prevent_thread_lock=True,
        theme=theme,
        css=STYLE,
    )
    if wait:
        print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return str(address)
