"""What a trained model is written to for use elsewhere."""
