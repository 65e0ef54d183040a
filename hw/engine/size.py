"""The numbers that fix a matrix engine, and what follows from them."""

from dataclasses import dataclass

from flightllm.spec.config import HwConfig
from flightllm.spec.formats import ROW_BLOCK
from flightllm.spec.parameters import (
    BLOCK_PAIRS,
    LARGEST_GROUP,
    LARGEST_HEAD,
    matrix_parameters,
    row_words,
)

__all__ = ["BLOCK_PAIRS", "EngineSize", "engine_size"]


@dataclass(frozen=True)
class EngineSize:
    """One core's matrix engine.

    Attributes
    ----------
    channels : memory channels of the core.
    k_lanes, cells : see `MatrixParameters`.
    lanes : words of an access to F; 2 or more, with `twin` 4.
    vectors : vectors of one instruction at most.
    accumulators : entries of each lane's accumulator memory, pairs of rows times batches of
        `cells` vectors: 8 pairs of an ordinary matrix, all of a channel's pairs of a whole one.
    twin : see `MatrixParameters`.
    add, mul, convert : latencies of the float32 units.
    """

    channels: int
    k_lanes: int
    cells: int
    lanes: int
    vectors: int
    accumulators: int
    twin: bool = False
    add: int = 3
    mul: int = 3
    convert: int = 2

    def __post_init__(self) -> None:
        if self.lanes < 2 or self.lanes & (self.lanes - 1):
            raise ValueError(f"F lanes must be a power of two of at least 2, not {self.lanes!r}")
        if self.twin and (self.cells < 2 or self.lanes < 4):
            raise ValueError(
                f"Twin slices must have 2 cells and 4 F lanes, not {self.cells!r}, {self.lanes!r}"
            )
        if self.accumulators < BLOCK_PAIRS * self.batches:
            raise ValueError(
                f"Accumulators must be at least {BLOCK_PAIRS * self.batches} for {self.vectors} "
                f"vectors, not {self.accumulators!r}"
            )

    @property
    def batches(self) -> int:
        """Batches of `cells` vectors, at most."""
        return -(-self.vectors // self.cells)

    @property
    def window_bytes(self) -> int:
        """Activations in a window."""
        return 2 * self.k_lanes

    @property
    def windows(self) -> int:
        """Windows of a group, at most; a power of two."""
        return max(1, LARGEST_GROUP // self.window_bytes)

    @property
    def out_lanes(self) -> int:
        """Words that a result takes to F at once."""
        return min(self.lanes, ROW_BLOCK)

    @property
    def parts(self) -> int:
        """Writes for the 16 rows of a block."""
        return ROW_BLOCK // self.out_lanes


def engine_size(config: HwConfig, core: int = 0) -> EngineSize:
    """The engine of a configuration's core: large enough for whatever the compiler emits."""
    made = matrix_parameters(config)
    channels = config.channels[core]
    vectors = max(config.prefill_tile, config.attention_tile * config.mv_vectors)
    pairs = max(BLOCK_PAIRS, -(-(LARGEST_HEAD // 2) // channels))
    return EngineSize(
        channels, made.k_lanes, made.cells, row_words(config), vectors,
        pairs * -(-vectors // made.cells), made.twin,
    )  # fmt: skip
