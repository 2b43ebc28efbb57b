"""Building blocks of several methods: prompts, losses, label tokens, masking, memory, feature caches."""
