"""Items and data sets."""

import random

from dassl.utils import Registry, check_availability, check_isfile

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg):
    check_availability(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names())
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)


class Datum:
    def __init__(self, impath="", label=0, domain=0, classname=""):
        assert isinstance(impath, str)
        assert check_isfile(impath)
        self._values = impath, label, domain, classname

    impath = property(lambda self: self._values[0])
    label = property(lambda self: self._values[1])
    domain = property(lambda self: self._values[2])
    classname = property(lambda self: self._values[3])


class DatasetBase:
    dataset_dir = ""
    domains = []

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        self.train_x, self.train_u, self.val, self.test = train_x, train_u, val, test
        self.num_classes = self.get_num_classes(train_x)
        self.lab2cname, self.classnames = self.get_lab2cname(train_x)

    @staticmethod
    def get_num_classes(data_source):
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source):
        names = {item.label: item.classname for item in data_source}
        return names, [names[label] for label in sorted(names)]

    def generate_fewshot_dataset(self, *data_sources, num_shots=-1, repeat=False):
        found = []
        for source in data_sources:
            shots = []
            for items in self.split_dataset_by_label(source).values():
                if len(items) >= num_shots:
                    items = random.sample(items, num_shots)
                elif repeat:
                    items = random.choices(items, k=num_shots)
                shots += items
            found.append(source if num_shots < 1 else shots)
        return found[0] if len(found) == 1 else found

    def split_dataset_by_label(self, data_source):
        found = {}
        for item in data_source:
            found.setdefault(item.label, []).append(item)
        return found
