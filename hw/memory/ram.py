"""Block memory: one write port, one read port, as BRAM and UltraRAM have them.

Amaranth writes every word of a memory's initial contents into the Verilog, a minute for a megabyte.
These memories have none, so a design for synthesis or Verilator can take them as instances of one
parametrised Verilog module instead: elaborate with `ExternalRams` as platform and add `sources` to
the design's own.
"""

from typing import Any

from amaranth.hdl import ClockSignal, Instance, Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["VERILOG", "ExternalRams", "Ram", "shallow", "sources"]

MODULE, LUT_MODULE = "flightllm_ram", "flightllm_lut_ram"
VERILOG = f"""\
// Block memory with byte or word strobes; what a read and a write of one word in one cycle read is
// the old word.
module {MODULE} #(
    parameter WIDTH = 8,
    parameter GRAIN = 8,
    parameter DEPTH = 2,
    parameter ADDRESS = 1
) (
    input wire clk,
    input wire [WIDTH / GRAIN - 1:0] write_enable,
    input wire [ADDRESS - 1:0] write_address,
    input wire [WIDTH - 1:0] write_data,
    input wire read_enable,
    input wire [ADDRESS - 1:0] read_address,
    output reg [WIDTH - 1:0] read_data
);
    reg [WIDTH - 1:0] storage [0:DEPTH - 1];
    integer i;
    always @(posedge clk) begin
        for (i = 0; i < WIDTH / GRAIN; i = i + 1)
            if (write_enable[i])
                storage[write_address][i * GRAIN +: GRAIN] <= write_data[i * GRAIN +: GRAIN];
        if (read_enable)
            read_data <= storage[read_address];
    end
endmodule
"""


LUT_VERILOG = (
    VERILOG.replace("// Block memory", "// Memory in look-up tables")
    .replace(f"module {MODULE}", f"module {LUT_MODULE}")
    .replace(
        "reg [WIDTH - 1:0] storage",
        '(* ram_style = "distributed" *)\n    reg [WIDTH - 1:0] storage',
    )
)


def sources(design: str) -> dict[str, str]:
    """Verilog by name of the memory modules that a design's text, Verilog or RTLIL, refers to."""
    return {MODULE: VERILOG} | ({LUT_MODULE: LUT_VERILOG} if LUT_MODULE in design else {})


def shallow(width: int, depth: int) -> bool:
    """Whether a memory belongs in look-up tables: in block memory most of it would lie idle."""
    return depth <= 128 or width * depth <= 4096


class ExternalRams:
    """A platform on which every `Ram` is an instance of a Verilog module.

    Members
    -------
    lut_rams : shallow ones have a module of their own, which says to AMD's tools and Yosys that
        they belong in look-up tables; left to themselves they take block memory for a wide one.
    """

    external_rams = True
    lut_rams = False


class Ram(wiring.Component):
    """`depth` words of `width` bits, written in grains of `grain` bits.

    Parameters
    ----------
    width, grain : bits of a word and of what one bit of `write_enable` covers.
    depth : words.

    Members
    -------
    write_enable, write_address, write_data : a write.
    read_enable, read_address : a read. read_data : its word, from the next cycle until the cycle
        after the next read; a read in the cycle of a write to its word gets the old word.
    """

    def __init__(self, width: int, depth: int, grain: int | None = None) -> None:
        self._width, self._depth, self._grain = width, max(depth, 2), grain or width
        address = range(self._depth)
        super().__init__({
            "write_enable": In(width // self._grain),
            "write_address": In(address),
            "write_data": In(width),
            "read_enable": In(1),
            "read_address": In(address),
            "read_data": Out(width),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        if getattr(platform, "external_rams", False):
            apart = getattr(platform, "lut_rams", False) and shallow(self._width, self._depth)
            m.submodules.words = self._instance(LUT_MODULE if apart else MODULE)
            return m
        m.submodules.words = words = memory.Memory(
            shape=self._width, depth=self._depth, init=[]
        )  # fmt: skip
        write, read = words.write_port(granularity=self._grain), words.read_port()
        m.d.comb += [
            write.en.eq(self.write_enable),
            write.addr.eq(self.write_address),
            write.data.eq(self.write_data),
            read.en.eq(self.read_enable),
            read.addr.eq(self.read_address),
            self.read_data.eq(read.data),
        ]
        return m

    def _instance(self, module: str) -> Instance:
        ports: dict[str, Any] = {"i_clk": ClockSignal()}
        for name in self.signature.members:
            kind = "o" if name == "read_data" else "i"
            ports[f"{kind}_{name}"] = getattr(self, name)
        return Instance(
            module, p_WIDTH=self._width, p_GRAIN=self._grain, p_DEPTH=self._depth,
            p_ADDRESS=len(Signal(range(self._depth))), **ports,
        )  # fmt: skip
