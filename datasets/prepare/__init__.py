"""The standard data sets on disk: info, download, conversion, splits and checks."""

SAMPLES = 200
"""Images of a data set that are decoded in a look over it."""
