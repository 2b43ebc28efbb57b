"""What several methods share: prompts, losses, label tokens, masking, memory, feature caches."""
