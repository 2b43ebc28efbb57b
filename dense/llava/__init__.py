"""LLaVA: a language model that sees through the image tower."""
