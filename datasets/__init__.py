"""Readers of data sets. Importing this package registers them under their class names."""
