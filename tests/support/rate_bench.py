"""One matrix product as a program of its own, with its beats counted at the AXI ports.

`from rate_bench import ...` works in every test (tests/conftest.py puts this folder on the path).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hand_program import chain, program, table
from numpy.typing import NDArray
from random_quantized import random_tensor

from flightllm.sim.functional import FunctionalDevice
from flightllm.sim.rtl.device import RtlDevice
from flightllm.sim.rtl.simulation import MemoryModel, Stop
from flightllm.spec import registers as host
from flightllm.spec.config import HwConfig
from flightllm.spec.device import memory_sha256
from flightllm.spec.encoding import Op, encode
from flightllm.spec.formats import format_for, kgroups_for, matrix_bytes, pack_matrix
from flightllm.spec.image import CoreCode, Program
from flightllm.spec.quant import QuantTensor

__all__ = ["Measured", "measure", "product"]


def _image(tensor: QuantTensor, channels: int) -> NDArray[np.uint8]:
    fmt = format_for(tensor)
    groups = kgroups_for(tensor.shape[1], fmt.group)
    out = np.zeros((channels, matrix_bytes(fmt, tensor.shape[0], groups, channels)), np.uint8)
    for c, data in enumerate(pack_matrix(tensor, channels)):
        out[c, : len(data)] = data
    return out


def product(config: HwConfig, rows: int, columns: int, tiles: tuple[int, ...] = (1,),
            **form: Any) -> Program:  # fmt: skip
    """A program of three entries: "setup", "main" and "store".

    "setup" brings random vectors into A, "main" multiplies them with a random matrix and is what
    is measured, "store" writes what "main" left in F to memory.

    Parameters
    ----------
    config : of one core. tiles : vectors of each product, all with the same matrix; a single
        vector is MV's. form : of the matrix, see `random_tensor`.
    """
    rng = np.random.default_rng(rows + columns)
    tensor = random_tensor(rng, rows, columns, **form)
    (channels,), most = config.channels, max(tiles)
    x = rng.normal(size=(most, columns)).astype(np.float32)
    vectors, vector_bytes = table(x, channels)
    maxima, _ = table(np.abs(x).max(axis=1)[None], channels)
    fmt, groups = format_for(tensor), kgroups_for(columns, form["group"])
    amax = most * columns
    scale, dst = amax + most, amax + 2 * most
    matrix = {"rows": rows, "kgroups": groups, "fmt": fmt.word, "first": 0, "start": 0}
    empty = _laid_out(config, vectors, maxima, tensor, most)
    place = {s.name: s.base // 64 for s in empty.segments}
    setup = [
        Op.make("ld.vec", addr=place["x"], dst=0, n=columns, count=most,
                mstride=vector_bytes // 64, dstride=columns),
        Op.make("ld.vec", addr=place["amax"], dst=amax, n=most, count=1, mstride=0, dstride=0),
        Op.make("misc.quant", src=0, src1=columns, n=columns, n1=most, gain=0, sums=0, sums1=0,
                blocks=0, amax=amax, amax1=1, parts=1, dst=0, dst1=columns, pad=columns,
                scale=scale, alpha=1 / 127, inv_n=1.0, eps=1.0),
    ]  # fmt: skip
    main = [op for count in tiles for op in (
        Op.make("ld.stream", addr=place["w"], **matrix),
        _linear(matrix, count, columns, scale, dst),
    )]  # fmt: skip
    store = [Op.make("st.vec", addr=place["y"], src=dst, n=rows, count=most,
                     mstride=_row_bytes(rows, channels) // 64, sstride=rows)]  # fmt: skip
    # LD runs ahead of the products: nothing but the weight FIFO couples them.
    parts = {"setup": chain(setup), "main": [*main, Op.make("sys.halt")], "store": chain(store)}
    words, entries = [], {}
    for name, ops in parts.items():
        entries[name] = len(words)
        words += encode(ops)
    code = CoreCode(np.array(words, np.uint32), np.zeros(1, np.uint32), entries)
    return dataclasses.replace(empty, cores=[code])


def _linear(matrix: dict[str, int], count: int, columns: int, scale: int, dst: int) -> Op:
    fields = {"src": 0, "src2": 0, "scale": scale, "scale2": 0, "dst": dst, "dst2": 0, "add": 0,
              "n2": 1, "emit": 0, "table": 0, **matrix}  # fmt: skip
    if count == 1:
        return Op.make("mv.linear", **fields)
    rows = matrix["rows"]
    return Op.make("mm.linear", **fields, src1=columns, scale1=1, dst1=rows, add1=0, n1=count)


def _row_bytes(rows: int, channels: int) -> int:
    """Bytes of a spread row of `rows` floats in each channel."""
    return table(np.zeros((1, rows), np.float32), channels)[1]


def _laid_out(config: HwConfig, vectors: NDArray[np.uint8], maxima: NDArray[np.uint8],
              tensor: QuantTensor, most: int) -> Program:  # fmt: skip
    (channels,) = config.channels
    fixed = {"w": _image(tensor, channels), "x": vectors, "amax": maxima}
    out = {"y": most * _row_bytes(tensor.shape[0], channels)}
    return program(config, [[Op.make("sys.halt")]], fixed, out)


@dataclass(frozen=True)
class Measured:
    """What the ports of the fullest channel saw of a "main".

    Members
    -------
    beats : data beats read. cycles : from the first address to the interrupt, both included.
    """

    beats: int
    cycles: int

    @property
    def busy(self) -> float:
        """Share of cycles with a data beat."""
        return self.beats / self.cycles


def measure(made: Program, memory: MemoryModel, cache: Path, optimise: str = "-O2") -> Measured:
    """Run a `product` in RTL and hold its results against the functional simulator's."""
    reference = FunctionalDevice(made.config)
    reference.load(made)
    for entry in ("setup", "main", "store"):
        reference.run(entry, {})
    device = RtlDevice(made.config, memory=memory, cache=cache, optimise=optimise)
    device.load(made)
    device.run("setup", {})
    channels = range(made.config.channels[0])
    for channel in channels:
        device.sim.counts(channel, clear=True)
    end = _run_to_interrupt(device, made.cores[0].entries["main"])
    counts = [device.sim.counts(channel) for channel in channels]
    device.run("store", {})
    assert memory_sha256(device, made) == memory_sha256(reference, made)
    device.close()
    first = min(count.first_address for count in counts)
    return Measured(max(count.read_beats for count in counts), end - first)


def _run_to_interrupt(device: RtlDevice, entry: int) -> int:
    """Start below the device, which would read registers afterwards; the cycle of the interrupt."""
    for name, value in (("INTERRUPT_STATUS", 7), ("ENTRY", entry), ("CONTROL", 1)):
        device.sim.write(host.address(name), value)
    assert device.sim.run(5_000_000) == Stop.INTERRUPT
    return device.sim.cycle
