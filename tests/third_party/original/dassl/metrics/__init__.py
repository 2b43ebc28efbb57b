"""Accuracy."""


def compute_accuracy(output, target, topk=(1,)):
    if isinstance(output, (tuple, list)):
        output = output[0]
    order = output.topk(max(topk), dim=1).indices
    hit = order == target[:, None]
    return [100 * hit[:, :k].any(dim=1).float().mean(dim=0, keepdim=True) for k in topk]
