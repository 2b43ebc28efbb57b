BUNDLE = "model.safetensors"


def is_bundle(path):
    return False


def read_bundle(path):
    raise NotImplementedError
