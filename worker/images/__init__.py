"""Read and write pictures: formats, orientation, colour profiles, metadata and limits."""

from worker.images.clock import DECODE_SECONDS
from worker.images.picture import Frame, Picture
from worker.images.reading import MOST_FRAMES, decode, is_recognised
from worker.images.writing import encode

__all__ = ["DECODE_SECONDS", "MOST_FRAMES", "Frame", "Picture", "decode", "encode", "is_recognised"]
