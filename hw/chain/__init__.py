"""CSD-chains and the cell made of them: exact dot products of two rows with one vector.

See docs/units/chain.md. `Cell` is what the matrix engine uses; `chain_for` makes the chain of a
multiplier kind.
"""

from flightllm.hw.chain.cell import Cell, cell_latency, chain_for
from flightllm.hw.chain.inferred import InferredChain
from flightllm.hw.chain.packed import PackedChain
from flightllm.hw.chain.primitive import DSP48E1, DSP48E2, DSP58, Dsp
from flightllm.hw.chain.sparse import window_layout
from flightllm.hw.chain.triple import TripleChain

__all__ = [
    "Cell", "DSP48E1", "DSP48E2", "DSP58", "Dsp", "InferredChain", "PackedChain", "TripleChain",
    "cell_latency", "chain_for", "window_layout",
]  # fmt: skip
