"""Adders on ECP5: a map from Yosys' $alu to CCU2C that takes fewer of them than Yosys' own.

nextpnr adds a CCU2C in front of a chain whose first CIN is connected, be it to a constant, one
behind a chain whose last COUT is connected, be it to nothing, and one wherever logic reads a carry.
docs/boards.md has what that came to.
"""

from __future__ import annotations

__all__ = ["CELLS", "LAST", "LEAST", "MAP"]

LEAST = 6
"""Bits of the narrowest sum that is a chain: a chain has fewer wires to place than its tables."""
LAST = "CCU2C_END"

CELLS = f"""\
// The last CCU2C of a chain. Yosys has no output that is open, so here its COUT is an input; it is
// a CCU2C again in what nextpnr reads.
module {LAST} (
    input wire CIN, A0, B0, C0, D0, A1, B1, C1, D1, COUT,
    output wire S0, S1
);
    parameter [15:0] INIT0 = 0;
    parameter [15:0] INIT1 = 0;
    parameter INJECT1_0 = "NO";
    parameter INJECT1_1 = "NO";
    CCU2C #(
        .INIT0(INIT0), .INIT1(INIT1), .INJECT1_0(INJECT1_0), .INJECT1_1(INJECT1_1)
    ) last (
        .CIN(CIN), .A0(A0), .B0(B0), .C0(C0), .D0(D0), .A1(A1), .B1(B1), .C1(C1), .D1(D1),
        .S0(S0), .S1(S1), .COUT()
    );
endmodule
"""
"""Verilog of the cell that the map has beside CCU2C: a black box to Yosys, a model to simulate."""

MAP = f"""\
// The carry out of bit 0 comes from the two-input table of the first half, so a constant carry-in
// takes none. Carries are got back from the sums. The name puts this map before +/techmap.v's.
(* techmap_celltype = "$alu" *)
module _80_flightllm_alu (A, B, CI, BI, X, Y, CO);
    parameter A_SIGNED = 0;
    parameter B_SIGNED = 0;
    parameter A_WIDTH = {LEAST};
    parameter B_WIDTH = {LEAST};
    parameter Y_WIDTH = {LEAST};
    parameter _TECHMAP_CONSTMSK_CI_ = 0;
    parameter _TECHMAP_CONSTVAL_CI_ = 0;
    parameter _TECHMAP_CONSTMSK_BI_ = 0;
    parameter _TECHMAP_CONSTVAL_BI_ = 0;

    (* force_downto *) input [A_WIDTH-1:0] A;
    (* force_downto *) input [B_WIDTH-1:0] B;
    (* force_downto *) output [Y_WIDTH-1:0] X, Y;
    input CI, BI;
    (* force_downto *) output [Y_WIDTH-1:0] CO;

    wire _TECHMAP_FAIL_ = Y_WIDTH < {LEAST};

    localparam HALVES = (Y_WIDTH + 1) / 2 * 2;
    localparam KNOWN = _TECHMAP_CONSTMSK_CI_ && _TECHMAP_CONSTMSK_BI_;
    // Carry out of bit 0 from A and B; its own sum is 0. Where CI or BI varies, A is that carry.
    localparam [15:0] FIRST = !KNOWN ? 16'h000A
        : _TECHMAP_CONSTVAL_BI_ ? (_TECHMAP_CONSTVAL_CI_ ? 16'h000B : 16'h0002)
        : (_TECHMAP_CONSTVAL_CI_ ? 16'h000E : 16'h0008);
    localparam [15:0] SUM = 16'b1001011010101010;

    (* force_downto *) wire [Y_WIDTH-1:0] AA, B_wide;
    \\$pos #(.A_SIGNED(A_SIGNED), .A_WIDTH(A_WIDTH), .Y_WIDTH(Y_WIDTH)) A_pos (.A(A), .Y(AA));
    \\$pos #(.A_SIGNED(B_SIGNED), .A_WIDTH(B_WIDTH), .Y_WIDTH(Y_WIDTH)) B_pos (.A(B), .Y(B_wide));
    (* force_downto *) wire [Y_WIDTH-1:0] BB = BI ? ~B_wide : B_wide;
    wire carry_0 = (AA[0] & BB[0]) | (CI & (AA[0] | BB[0]));

    (* force_downto *) wire [HALVES-1:0] A_half = KNOWN ? AA : {{AA[Y_WIDTH-1:1], carry_0}};
    (* force_downto *) wire [HALVES-1:0] B_half = B_wide;
    (* force_downto *) wire [HALVES-1:0] S;
    wire [HALVES/2-1:1] chain;

    genvar i;
    generate
        for (i = 0; i < HALVES - 2; i = i + 2) begin : pair
            CCU2C #(
                .INIT0(i == 0 ? FIRST : SUM), .INIT1(SUM), .INJECT1_0("NO"), .INJECT1_1("NO")
            ) ccu2c (
                .CIN(i == 0 ? 1'bx : chain[i/2]),
                .A0(A_half[i]), .B0(B_half[i]), .C0(i == 0 ? 1'b1 : BI), .D0(1'b1),
                .A1(A_half[i+1]), .B1(B_half[i+1]), .C1(BI), .D1(1'b1),
                .S0(S[i]), .S1(S[i+1]), .COUT(chain[i/2+1])
            );
        end
        for (i = 0; i < Y_WIDTH - 1; i = i + 1) begin : inner
            assign CO[i] = Y[i+1] ^ X[i+1];
        end
    endgenerate
    {LAST} #(
        .INIT0(SUM), .INIT1(SUM), .INJECT1_0("NO"), .INJECT1_1("NO")
    ) last (
        .CIN(chain[HALVES/2-1]),
        .A0(A_half[HALVES-2]), .B0(B_half[HALVES-2]), .C0(BI), .D0(1'b1),
        .A1(A_half[HALVES-1]), .B1(B_half[HALVES-1]), .C1(BI), .D1(1'b1),
        .S0(S[HALVES-2]), .S1(S[HALVES-1]), .COUT(1'bx)
    );

    assign X = AA ^ BB;
    assign Y = {{S[Y_WIDTH-1:1], X[0] ^ CI}};
    assign CO[Y_WIDTH-1] = X[Y_WIDTH-1] ? ~Y[Y_WIDTH-1] : AA[Y_WIDTH-1];
endmodule
"""
"""Verilog for Yosys' techmap."""
