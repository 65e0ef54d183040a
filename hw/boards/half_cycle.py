"""Memories on ECP5: block memory that reads at the clock's falling edge, in the middle of a cycle.

An address that is there by then gives its word in the same cycle, so a memory that is read without
a clock, which would be made of look-up tables, lies in block memory. A memory that is read with the
clock takes a register behind it: the chip promises nothing where one word is written and read at
one edge, and what Yosys adds for that is larger than the register. docs/boards.md has what both
came to. The design has one clock: the map takes a memory's write clock for its read clock.
"""

from __future__ import annotations

__all__ = ["LATE", "LEAST_BITS", "LEAST_WIDTH", "MAP"]

LATE = (
    "CoreBuffers__*/words %M Dispatcher/registers Dispatcher/program_memory"
    " SpecialFunctionUnit__vector__*/ring MatrixEngine__epilogue__queue/* %u %u %u %u"
)
"""Yosys' selection of memories that stay as they are: their address comes late in the cycle, or
much follows on their word."""

LEAST_WIDTH, LEAST_BITS = 17, 160
"""Of a memory that is read without a clock: a block for less is not worth its place."""

MAP = f"""\
// One port writes at the rising edge, one reads.
(* techmap_celltype = "$mem_v2" *)
module _80_flightllm_memory (
    RD_CLK, RD_EN, RD_ARST, RD_SRST, RD_ADDR, RD_DATA, WR_CLK, WR_EN, WR_ADDR, WR_DATA
);
    parameter MEMID = "";
    parameter signed SIZE = 4;
    parameter signed OFFSET = 0;
    parameter signed ABITS = 2;
    parameter signed WIDTH = 8;
    parameter signed RD_PORTS = 1;
    parameter signed WR_PORTS = 1;
    parameter INIT = 1'bx;
    parameter RD_CLK_ENABLE = 1'b1;
    parameter RD_CLK_POLARITY = 1'b1;
    parameter RD_TRANSPARENCY_MASK = 1'b0;
    parameter RD_COLLISION_X_MASK = 1'b0;
    parameter RD_WIDE_CONTINUATION = 1'b0;
    parameter RD_CE_OVER_SRST = 1'b0;
    parameter RD_ARST_VALUE = 1'b0;
    parameter RD_SRST_VALUE = 1'b0;
    parameter RD_INIT_VALUE = 1'b0;
    parameter WR_CLK_ENABLE = 1'b1;
    parameter WR_CLK_POLARITY = 1'b1;
    parameter WR_PRIORITY_MASK = 1'b0;
    parameter WR_WIDE_CONTINUATION = 1'b0;

    input [RD_PORTS-1:0] RD_CLK, RD_EN, RD_ARST, RD_SRST;
    input [RD_PORTS*ABITS-1:0] RD_ADDR;
    output [RD_PORTS*WIDTH-1:0] RD_DATA;
    input [WR_PORTS-1:0] WR_CLK;
    input [WR_PORTS*WIDTH-1:0] WR_EN;
    input [WR_PORTS*ABITS-1:0] WR_ADDR;
    input [WR_PORTS*WIDTH-1:0] WR_DATA;

    localparam AT_ONCE = RD_CLK_ENABLE == 0;
    localparam FAILS = RD_PORTS != 1 || WR_PORTS != 1 || WR_CLK_POLARITY == 0
        || RD_TRANSPARENCY_MASK != 0 || RD_COLLISION_X_MASK != 0
        || (AT_ONCE ? WIDTH < {LEAST_WIDTH} || SIZE * WIDTH < {LEAST_BITS} : RD_CLK_POLARITY == 0);
    wire _TECHMAP_FAIL_ = FAILS;

    generate
        if (!FAILS) begin : half
            wire [WIDTH-1:0] word;
            (* ram_style = "block" *)
            \\$mem_v2 #(
                .MEMID(MEMID), .SIZE(SIZE), .OFFSET(OFFSET), .ABITS(ABITS), .WIDTH(WIDTH),
                .INIT(INIT), .RD_PORTS(1), .RD_CLK_ENABLE(1'b1), .RD_CLK_POLARITY(1'b0),
                .RD_TRANSPARENCY_MASK(1'b0), .RD_COLLISION_X_MASK(1'b0),
                .RD_WIDE_CONTINUATION(1'b0), .RD_CE_OVER_SRST(1'b0),
                .RD_ARST_VALUE({{WIDTH{{1'bx}}}}), .RD_SRST_VALUE({{WIDTH{{1'bx}}}}),
                .RD_INIT_VALUE({{WIDTH{{1'bx}}}}), .WR_PORTS(1), .WR_CLK_ENABLE(1'b1),
                .WR_CLK_POLARITY(1'b1), .WR_PRIORITY_MASK(1'b0), .WR_WIDE_CONTINUATION(1'b0)
            ) memory (
                .RD_CLK(WR_CLK), .RD_EN(1'b1), .RD_ARST(1'b0), .RD_SRST(1'b0), .RD_ADDR(RD_ADDR),
                .RD_DATA(word), .WR_CLK(WR_CLK), .WR_EN(WR_EN), .WR_ADDR(WR_ADDR),
                .WR_DATA(WR_DATA)
            );
            if (AT_ONCE)
                assign RD_DATA = word;
            else
                \\$dffe #(.WIDTH(WIDTH), .CLK_POLARITY(1'b1), .EN_POLARITY(1'b1)) later (
                    .CLK(RD_CLK), .EN(RD_EN), .D(word), .Q(RD_DATA)
                );
        end
    endgenerate
endmodule
"""
"""Verilog for Yosys' techmap, before it picks block memories."""
