"""Samplers by name."""

from torch.utils.data import RandomSampler, SequentialSampler

SAMPLERS = {"RandomSampler": RandomSampler, "SequentialSampler": SequentialSampler}


def build_sampler(sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16):
    return SAMPLERS[sampler_type](data_source)
