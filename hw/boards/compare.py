"""Comparisons with constants on ECP5: a chain of tables, three bits in each, and no carry cells."""

from __future__ import annotations

__all__ = ["MAP"]

MAP = """\
// From the lowest bit up: whether the value is below the bound, or equal to it where that counts.
(* techmap_celltype = "$lt $le $gt $ge" *)
module _80_flightllm_compare (A, B, Y);
    parameter A_SIGNED = 0;
    parameter B_SIGNED = 0;
    parameter A_WIDTH = 1;
    parameter B_WIDTH = 1;
    parameter Y_WIDTH = 1;
    parameter _TECHMAP_CELLTYPE_ = "";
    parameter _TECHMAP_CONSTMSK_A_ = 0;
    parameter _TECHMAP_CONSTMSK_B_ = 0;

    (* force_downto *) input [A_WIDTH-1:0] A;
    (* force_downto *) input [B_WIDTH-1:0] B;
    (* force_downto *) output [Y_WIDTH-1:0] Y;

    localparam WIDTH = A_WIDTH > B_WIDTH ? A_WIDTH : B_WIDTH;
    localparam A_BOUND = &_TECHMAP_CONSTMSK_A_, B_BOUND = &_TECHMAP_CONSTMSK_B_;
    wire _TECHMAP_FAIL_ = A_BOUND == B_BOUND;
    wire [1023:0] _TECHMAP_DO_ = "opt -fast;";

    localparam LESS = _TECHMAP_CELLTYPE_ == "$lt" || _TECHMAP_CELLTYPE_ == "$le";
    localparam EQUAL = _TECHMAP_CELLTYPE_ == "$le" || _TECHMAP_CELLTYPE_ == "$ge";
    localparam BELOW = LESS != A_BOUND;  // else the value is to be above
    localparam SIGNED = A_SIGNED && B_SIGNED;
    localparam [WIDTH-1:0] SIGN = SIGNED ? 1 << (WIDTH - 1) : 0;

    (* force_downto *) wire [WIDTH-1:0] A_wide, B_wide;
    \\$pos #(.A_SIGNED(SIGNED), .A_WIDTH(A_WIDTH), .Y_WIDTH(WIDTH)) A_pos (.A(A), .Y(A_wide));
    \\$pos #(.A_SIGNED(SIGNED), .A_WIDTH(B_WIDTH), .Y_WIDTH(WIDTH)) B_pos (.A(B), .Y(B_wide));
    (* force_downto *) wire [WIDTH-1:0] value = (A_BOUND ? B_wide : A_wide) ^ SIGN;
    (* force_downto *) wire [WIDTH-1:0] bound = (A_BOUND ? A_wide : B_wide) ^ SIGN;

    wire [WIDTH:0] below;
    assign below[0] = BELOW == EQUAL;
    genvar i;
    generate
        for (i = 0; i < WIDTH; i = i + 1) begin : bits
            assign below[i+1] = bound[i] ? below[i] | ~value[i] : below[i] & ~value[i];
        end
    endgenerate
    assign Y = BELOW ? below[WIDTH] : ~below[WIDTH];
endmodule
"""
"""Verilog for Yosys' techmap, before it makes sums of comparisons."""
