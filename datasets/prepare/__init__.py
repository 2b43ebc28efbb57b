"""The standard data sets on disk: facts, download, conversion, splits and checks."""
