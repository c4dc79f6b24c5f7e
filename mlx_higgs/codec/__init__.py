"""The codec: waveform <-> codes."""

from .codec import HiggsCodec, StreamingDecoder
from .config import CodecConfig

__all__ = ["CodecConfig", "HiggsCodec", "StreamingDecoder"]
