"""Builds the packed pictures of datasets.embedded from the published artwork."""
