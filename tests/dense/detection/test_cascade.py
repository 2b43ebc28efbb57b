"""The cascade against torchvision's Mask R-CNN and against plain loops."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import box_iou

from dense.detection.cascade import LEVELS, Detector, box_loss, federated_loss
from tests.tolerance import assert_close

CLASSES = 3


class Backbone(nn.Module):
    """Strides 4 to 32 by mean pooling."""

    channels = 8

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, 4)

    def forward(self, image):
        found = [self.first(image).relu()]
        for _ in range(3):
            found.append(F.avg_pool2d(found[-1], 2))
        return dict(zip(LEVELS, found))


def detector(stages=1, **more):
    torch.manual_seed(0)
    small = {"width": 8, "hidden": 16, "convolutions": 1, "anchor": 4.0, "regions": 32, "proposals": (40, 30)}
    return Detector(Backbone(), CLASSES, 64, (0.5,) * 3, (0.25,) * 3, stages, lowest=0.0, **{**small, **more})


def as_torchvision(ours):
    """torchvision's MaskRCNN of the parts of a detector with one stage, with a box shift per class."""
    heads = ours.roi_heads
    predictor = FastRCNNPredictor(16, 1 + CLASSES)
    predictor.cls_score = heads.box_predictor.cls_score
    mine = heads.box_predictor.bbox_pred
    copies = 1 + CLASSES if mine.out_features == 4 else 1
    predictor.bbox_pred.weight = nn.Parameter(mine.weight.detach().repeat(copies, 1))
    predictor.bbox_pred.bias = nn.Parameter(mine.bias.detach().repeat(copies))
    theirs = MaskRCNN(
        ours.backbone,
        min_size=64,
        max_size=64,
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        rpn_anchor_generator=ours.rpn.anchor_generator,
        rpn_head=ours.rpn.head,
        rpn_pre_nms_top_n_train=40,
        rpn_pre_nms_top_n_test=30,
        rpn_post_nms_top_n_train=40,
        rpn_post_nms_top_n_test=30,
        box_roi_pool=heads.box_roi_pool,
        box_head=heads.box_head,
        box_predictor=predictor,
        box_score_thresh=0.0,
        box_batch_size_per_image=32,
        mask_roi_pool=heads.mask_roi_pool,
        mask_head=heads.mask_head,
        mask_predictor=heads.mask_predictor,
        size_divisible=64,
        _skip_resize=True,
    )
    return theirs.train(ours.training)


def images_and_targets(empty=False):
    rng = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 64, generator=rng) for _ in range(2)]
    boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 60.0, 30.0]])
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 8:38, 6:28], masks[1, 12:28, 24:50] = 1, 1
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}]
    kept = slice(0, 0) if empty else slice(1)
    return images, [*targets, {name: value[kept] for name, value in targets[0].items()}]


@pytest.mark.parametrize("per_class", [False, True])
def test_one_stage_is_mask_rcnn_of_torchvision(per_class):
    ours = detector()
    if per_class:
        ours.roi_heads.box_predictor.bbox_pred = nn.Linear(16, 4 * (1 + CLASSES))
    theirs = as_torchvision(ours)
    images, targets = images_and_targets(empty=True)
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        losses.append(model(images, targets))
    assert set(losses[0]) == set(losses[1])
    assert len(losses[0]) == 5
    for name, value in losses[0].items():
        assert value > 0
        assert_close(value, losses[1][name])
    for mine, other in zip(ours.eval()(images), theirs.eval()(images)):
        assert len(mine["scores"]) > 10
        for name, value in other.items():
            assert_close(mine[name], value)


def test_stages_are_trained_with_a_growing_overlap():
    """Every stage takes the boxes of the one before, moved by its shifts, and labels all of them by its own IoU."""
    model, (images, targets) = detector(3), images_and_targets()
    seen = []
    for stage in (model.roi_heads, *model.roi_heads.later):
        stage.box_predictor.bbox_pred.weight.data.mul_(100)
        made = stage.select_training_samples

        def spy(boxes, truth, made=made):
            seen.append((list(boxes), made(boxes, truth)))
            return seen[-1][1]

        stage.select_training_samples = spy
    losses = model(images, targets)
    assert {"loss_classifier_2", "loss_box_reg_2", "loss_classifier_3", "loss_box_reg_3"} < set(losses)
    for number in (1, 2):
        given, (boxes, _, labels, wanted) = seen[number]
        assert [len(one) for one in given] == [len(one) for one in seen[number - 1][1][0]]
        assert not torch.equal(given[0], seen[number - 1][1][0][0])
        for image, box in enumerate(boxes):
            overlap, best = box_iou(targets[image]["boxes"], box).max(0)
            found = targets[image]["labels"][best] * (overlap >= (0.5, 0.6, 0.7)[number])
            assert torch.equal(labels[image], found)
            for row in torch.where(found > 0)[0][:3]:
                (x1, y1, x2, y2), (a1, b1, a2, b2) = targets[image]["boxes"][best[row]], box[row]
                shift = torch.stack([(x1 + x2 - a1 - a2) / 2 / (a2 - a1), (y1 + y2 - b1 - b2) / 2 / (b2 - b1)])
                assert_close(wanted[image][row, :2], shift * 10 * (1 + number))


def test_scores_are_the_mean_of_the_stages():
    model, (images, _) = detector(3).eval(), images_and_targets()
    given = []
    for stage in (model.roi_heads, *model.roi_heads.later):
        stage.box_predictor.register_forward_hook(lambda module, args, out: given.append(out))
    kept = []
    model.roi_heads.detections = lambda boxes, scores, shape: (
        kept.append((boxes, scores)) or type(model.roi_heads).detections(model.roi_heads, boxes, scores, shape)
    )
    model(images)
    assert len(given) == 3
    assert kept[0][0].shape[1:] == (1, 4)
    expected = sum(logits.softmax(1)[:, 1:] for logits, _ in given) / 3
    assert_close(torch.cat([scores for _, scores in kept]), expected)


def test_backbone_learns_from_the_mean_of_the_stages():
    model, (images, targets) = detector(3), images_and_targets()
    first = model.roi_heads
    for stage in first.later:  # three times the same stage at the same boxes
        stage.box_head, stage.box_predictor = first.box_head, first.box_predictor
    nn.init.zeros_(first.box_predictor.bbox_pred.weight)
    torch.manual_seed(3)
    losses = model(images, targets)
    weight = model.backbone.body.first.weight
    parts = [
        torch.autograd.grad(losses[name], weight, retain_graph=True)[0] for name in ("loss_classifier", "loss_mask")
    ]
    torch.manual_seed(3)
    model.roi_heads.later = nn.ModuleList()
    alone = model(images, targets)
    assert_close(parts[0], torch.autograd.grad(alone["loss_classifier"], weight, retain_graph=True)[0] / 3)
    assert_close(parts[1], torch.autograd.grad(alone["loss_mask"], weight)[0])


def test_boxes_are_exact_in_bfloat16():
    model, (images, targets) = detector(3), images_and_targets()
    torch.manual_seed(3)
    exact = model(images, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(3)
        losses = model(images, targets)
        boxes = model.eval()(images)[0]["boxes"]
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert losses["loss_mask"].item() == pytest.approx(exact["loss_mask"].item(), rel=0.05)
    assert boxes.dtype == torch.float32
    assert (boxes != boxes.bfloat16().float()).float().mean() > 0.5


def test_image_without_objects_is_trained_on():
    images, targets = images_and_targets(empty=True)
    losses = detector(3)(images[1:], targets[1:])
    assert all(torch.isfinite(value) for value in losses.values())
    assert losses["loss_mask"] == 0
    assert losses["loss_box_reg"] == 0
    assert losses["loss_classifier_3"] > 0
    sum(losses.values()).backward()


def test_federated_loss_looks_at_some_classes():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5), torch.tensor([-1, 2, 2, -1, 0, -1])
    frequency = torch.tensor([4, 0, 9, 0, 1])

    def plain(classes):
        terms = [
            -F.logsigmoid(logits[row, column] if labels[row] == column else -logits[row, column])
            for row in range(6)
            for column in classes
        ]
        return torch.stack(terms).sum() / 6

    assert_close(federated_loss(logits, labels, frequency, 2), plain([0, 2]))
    assert_close(federated_loss(logits, labels, frequency, 1), plain([0, 2]))  # those of the labels are always there
    assert_close(federated_loss(logits, labels, frequency, 3), plain([0, 2, 4]))  # no class without images is drawn
    assert_close(federated_loss(logits, labels, frequency, 50), plain([0, 2, 4]))
    drawn = torch.tensor([[1, 100, 1, 1, 1]]).float()
    draws = [federated_loss(logits, torch.full((6,), -1), drawn[0], 1) for _ in range(300)]
    share = sum(torch.isclose(one, plain_of(logits, 1)) for one in draws) / 300
    assert 0.6 < share < 0.8  # sqrt(100) of 14


def plain_of(logits, column):
    return F.softplus(logits[:, column]).mean()


def test_sigmoid_classes_start_rare():
    model = detector(2, frequency=torch.tensor([5, 3, 1]))
    images, targets = images_and_targets()
    losses = model(images, targets)
    assert all(torch.isfinite(value) for value in losses.values())
    found = model.eval()(images)
    scores = torch.cat([one["scores"] for one in found])
    assert 0.005 < scores.mean() < 0.02
    assert "roi_heads.frequency" not in model.state_dict()


def test_box_loss_against_a_loop():
    torch.manual_seed(0)
    shifts, targets, labels = torch.randn(5, 4, 4), torch.randn(5, 4), torch.tensor([0, 1, 3, 0, 2])
    total = 0.0
    for row, label in enumerate(labels.tolist()):
        for place in range(4) if label else ():
            gap = float((shifts[row, label, place] - targets[row, place]).abs())
            total += 0.5 * gap**2 * 9 if gap < 1 / 9 else gap - 1 / 18
    assert float(box_loss(shifts, labels, targets)) == pytest.approx(total / 5, rel=1e-5)
    assert_close(box_loss(shifts[:, 2:3], labels, targets), box_loss(shifts[:, 2:3].repeat(1, 4, 1), labels, targets))


def test_number_of_stages_is_checked():
    with pytest.raises(ValueError, match="4 stages, expected 1 to 3"):
        detector(4)
