"""Accuracy on a whole set."""

from dassl.utils import Registry, check_availability

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg, **kwargs):
    check_availability(cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY.registered_names())
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)


class EvaluatorBase:
    def __init__(self, cfg):
        self.cfg = cfg


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg)
        self.reset()

    def reset(self):
        self._correct = self._total = 0

    def process(self, mo, gt):
        self._correct += int((mo.argmax(dim=1) == gt).sum())
        self._total += len(gt)

    def evaluate(self):
        accuracy = 100.0 * self._correct / self._total
        print(f"=> result\n* total: {self._total:,}\n* correct: {self._correct:,}\n* accuracy: {accuracy:.1f}%")
        return {"accuracy": accuracy, "error_rate": 100.0 - accuracy}
