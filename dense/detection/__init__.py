"""Detection and instance segmentation: Cascade Mask R-CNN."""
