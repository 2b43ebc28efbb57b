"""Classifier matrices and graphs compute what the model does."""

import numpy as np
import pytest
import torch

from align_prompt.export.classifier import write_classifier
from align_prompt.export.graph import Graph, compared, exported, graph_of, write_onnx, write_program
from align_prompt.images import to_tensor
from clip import load


def images_of(model, pictures):
    transform = model.trainer.dm.tfm_test
    return torch.stack([to_tensor(path, transform, (32, 32)) for path in pictures])


@pytest.mark.parametrize("method", ["CoOp", "KgCoOp", "LAMM", "LinearProbe", "LPPP", "ZeroshotCLIP"])
def test_a_classifier_matrix_gives_the_logits(method, trained, backbone, pictures, tmp_path):
    if method == "ZeroshotCLIP":
        import align_prompt

        model = align_prompt.load(backbone, ["cat", "dog"], "cpu")
    else:
        model = trained(method)
    write_classifier(model, tmp_path / "c.npz")
    found = np.load(tmp_path / "c.npz", allow_pickle=False)
    with torch.no_grad():
        feature = load(backbone)[0].encode_image(images_of(model, pictures)).pooled.numpy()
    if found["normalized"]:
        feature = feature / np.linalg.norm(feature, axis=1, keepdims=True)
    expected = model.logits(pictures).numpy()
    np.testing.assert_allclose(
        feature @ found["weight"].T + found["bias"], expected, atol=1e-5 * np.abs(expected).max()
    )
    assert list(found["classnames"]) == model.classnames


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("MaPLe", ("TRAINER.MAPLE.PROMPT_DEPTH", 2), "prompts the image tower"),
        ("CoCoOp", (), "depends on the picture"),
        ("CLIPAdapter", (), "not a matrix product"),
        ("PLOT", (), "not a matrix product"),
    ],
)
def test_methods_without_a_classifier_matrix_say_why(method, options, reason, trained, tmp_path):
    with pytest.raises(ValueError, match=reason):
        write_classifier(trained(method, *options), tmp_path / "c.npz")


GRAPHS = {
    "MaPLe": ("TRAINER.MAPLE.PROMPT_DEPTH", 2),
    "MMRL": ("TRAINER.MMRL.LAYER", 2, "TRAINER.MMRL.REP_DIM", 16, "TRAINER.MMRL.PREC", "fp32"),
    "ALIGN": ("TRAINER.ALIGN.PROMPT_DEPTH", 2, "TRAINER.ALIGN.VISION_PROMPT_NUMBER", 2)
    + ("TRAINER.ALIGN.TEXT_PROMPT_NUMBER", 2, "TRAINER.ALIGN.MAX_ITER", 3, "TRAINER.ALIGN.THRESHOLD", 1e-9),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", GRAPHS)
def test_graphs_compute_the_logits(method, trained, pictures, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = trained(method, *GRAPHS[method])
    write_program(model, tmp_path / "g.pt2")
    write_onnx(model, tmp_path / "g.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "g.onnx"))
    expected = model.logits(pictures)
    assert session.get_modelmeta().custom_metadata_map["classnames"].startswith('["cat"')
    for count in (1, 5):  # another number of pictures than that of the example
        images = images_of(model, pictures)[:count]
        found = torch.from_numpy(session.run(None, {"image": images.numpy()})[0])
        torch.testing.assert_close(found, expected[:count], rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_graph_that_differs_is_refused(trained):
    graph, example = graph_of(trained("CoOp"))
    assert isinstance(graph, Graph)
    with pytest.raises(ValueError, match="differs from the model"):
        compared(graph, example, lambda image: graph(image) * 1.001)


def test_a_method_without_a_graph_says_why(trained, monkeypatch):
    def fixed(graph, image):  # a length is a number of the example's pictures
        return torch.ones(len(image), 3)

    monkeypatch.setattr(Graph, "forward", fixed)
    with pytest.raises(ValueError, match=r"CoOp has no graph for any number of pictures: Constraints violated"):
        exported(trained("CoOp"))


def test_text_that_depends_on_the_picture_has_no_graph(trained, tmp_path):
    with pytest.raises(ValueError, match="which no fixed graph does"):
        write_program(trained("CoCoOp"), tmp_path / "g.pt2")
    with pytest.raises(ValueError, match="TPT adapts to every picture"):
        write_program(trained("TPT"), tmp_path / "g.pt2")
