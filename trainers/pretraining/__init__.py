"""Methods that update CLIP's own weights: contrastive pre-training and unmasked token alignment."""
