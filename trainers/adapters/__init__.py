"""Methods that leave the prompt alone and adapt features or classify them: caches, adapters, probes."""
