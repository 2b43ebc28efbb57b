"""The registry of data sets and what a data set is made of.

Names are imported when they are first used, so that a command can answer --help quickly; __init__.pyi lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
