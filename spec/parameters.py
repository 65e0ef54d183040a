"""Numbers of the matrix path that follow from a `HwConfig`; stated here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

from flightllm.spec.config import HwConfig
from flightllm.spec.formats import ROW_BLOCK

__all__ = [
    "BLOCK_PAIRS", "LARGEST_GROUP", "LARGEST_HEAD", "MatrixParameters", "exchanged_bytes",
    "matrix_parameters", "row_bytes", "row_words", "words_of",
]  # fmt: skip

BLOCK_PAIRS = ROW_BLOCK // 2
"""Row pairs whose results leave the array together."""
LARGEST_GROUP = 256
"""Elements of a group that the array has windows for."""
LARGEST_HEAD = 128
"""Head size for which an engine provides accumulators; larger heads allow fewer vectors."""

MAX_LANES = 64
TWIN_SFU_LANES = 4
"""A twin slice can finish four rows, which the result memory takes as one of its words."""
PACKS_FULL_CODES = {"dsp48e2": True, "dsp58": True, "dsp48e1": False, "inferred": True}


@dataclass(frozen=True)
class MatrixParameters:
    """The shape of one channel's share of the matrix engine.

    Attributes
    ----------
    beat_bytes : bytes of a beat of the channel's weight FIFO.
    k_lanes : codes of each row of a pair in one slice; a power of two, 16 to 64.
    cells : vectors that a slice meets in one cycle; 2 * k_lanes * cells is macs_per_channel.
    dsp_kind, chain_length : the multiplier primitive, and how many of it are cascaded.
    twin : with one vector a slice has two parts, for two cells: a beat of narrow codes holds more
        than one part.
    full_pairs : a pair of full 8-bit levels shares a multiplier. Where it does not (DSP48E1), such
        pairs take two slices, one a row.
    """

    beat_bytes: int
    k_lanes: int
    cells: int
    dsp_kind: str
    chain_length: int
    twin: bool
    full_pairs: bool

    @property
    def window_bytes(self) -> int:
        """Activations that one slice can reach: k_lanes / 8 windows of 16."""
        return 2 * self.k_lanes


def matrix_parameters(config: HwConfig) -> MatrixParameters:
    """The matrix path of a configuration.

    `k_lanes` is the largest power of two up to 64 of which 2 * k_lanes divides `macs_per_channel`
    and that is no more than 2 * `beat_bytes`: a slice of 2-bit codes is then at most a beat.
    """
    lanes = MAX_LANES
    while config.macs_per_channel % (2 * lanes) or lanes > 2 * config.beat_bytes:
        lanes //= 2
    cells = config.macs_per_channel // (2 * lanes)
    return MatrixParameters(
        beat_bytes=config.beat_bytes,
        k_lanes=lanes,
        cells=cells,
        dsp_kind=config.dsp_kind,
        chain_length=config.chain_length,
        twin=cells > 1 and lanes < 2 * config.beat_bytes and config.sfu_lanes >= TWIN_SFU_LANES,
        full_pairs=PACKS_FULL_CODES[config.dsp_kind],
    )


def words_of(lanes: int) -> int:
    """Words that so many special function lanes take together; one lane takes two in turn."""
    return max(2, lanes)


def row_words(config: HwConfig) -> int:
    """Words of a row of the F buffer: what a read of it takes."""
    return words_of(config.sfu_lanes)


def row_bytes(config: HwConfig) -> int:
    """Bytes of a row of the A buffer: what a read of it takes."""
    return max(matrix_parameters(config).window_bytes, config.beat_bytes)


def exchanged_bytes(config: HwConfig) -> int:
    """Bytes of the A buffer that a write between cores takes: as many as a row of words has.

    A device of one core has no such writes, and its A buffer no wider port than the special
    function unit needs.
    """
    if config.cores == 1:
        return row_words(config)
    return min(4 * row_words(config), row_bytes(config))
