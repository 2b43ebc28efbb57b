"""The tiny CLIP of the trainers' tests, for tools that read and write what trainers make."""

from tests.trainers.conftest import names, tiny_clip

__all__ = ["names", "tiny_clip"]
