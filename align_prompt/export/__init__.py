"""Export formats of a trained model."""
