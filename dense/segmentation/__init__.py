"""Semantic segmentation: UperNet, and zero-shot by class names."""
