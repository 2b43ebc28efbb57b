"""Backbones whose towers are modules of open_clip, timm or transformers, behind the interface of :class:`clip.CLIP`.

Nothing of those networks is written here again: the modules and their weights are theirs. What is here finds a backbone
by name, reads its configuration, and puts prompts into its blocks. The packages are extras and imported when a backbone
needs them.
"""
