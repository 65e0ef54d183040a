"""The decode unit beside a channel: beats of a stored matrix in, slices of INT8 levels out.

See docs/units/decode.md. `DecodeUnit` is the unit; the other files are its parts.
"""

from flightllm.hw.decode.layout import Command, FormatWord, Slice
from flightllm.hw.decode.unit import DecodeUnit

__all__ = ["Command", "DecodeUnit", "FormatWord", "Slice"]
