"""The standard data sets on disk: info, download, conversion, splits and checks."""
