"""The training engine, under the import names of Dassl.

A trainer or a data set written for Dassl runs here unchanged; what differs from the original on purpose is listed in
docs/engine.md. This package knows nothing of CLIP, of any data set or of any method.
"""

__version__ = "0.6.3"
