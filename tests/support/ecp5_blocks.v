// Models of the two ECP5 blocks that Yosys' library has as black boxes, in the modes that Yosys maps
// to: block memory without output registers, and the multiplier without any. Lattice FPGA-TN-02204
// (memory usage), FPGA-TN-02205 (sysDSP).
//
// What one port writes and the other reads in the same cycle: the chip gives the reader no promise.
// The model gives it the complement of the old bits, so that a design that relies on any fails. Where
// one of the two clocks is inverted, half a cycle lies between them.

module MULT18X18D (
    input A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0,
    input B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0,
    input C17, C16, C15, C14, C13, C12, C11, C10, C9, C8, C7, C6, C5, C4, C3, C2, C1, C0,
    input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
    output P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19,
    P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0
);
    wire signed [18:0] a = {SIGNEDA & A17,
        A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
    wire signed [18:0] b = {SIGNEDB & B17,
        B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
    wire signed [37:0] product = a * b;
    assign {
        P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19,
        P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} =
        product[35:0];
endmodule

module DP16KD (
    input DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5,
    DIA4, DIA3, DIA2, DIA1, DIA0,
    input ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1,
    ADA0,
    input CEA, OCEA, CLKA, WEA, RSTA, CSA2, CSA1, CSA0,
    output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5,
    DOA4, DOA3, DOA2, DOA1, DOA0,
    input DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5,
    DIB4, DIB3, DIB2, DIB1, DIB0,
    input ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1,
    ADB0,
    input CEB, OCEB, CLKB, WEB, RSTB, CSB2, CSB1, CSB0,
    output DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5,
    DOB4, DOB3, DOB2, DOB1, DOB0
);
    parameter DATA_WIDTH_A = 18, REGMODE_A = "NOREG", CSDECODE_A = "0b000";
    parameter [127:0] WRITEMODE_A = "NORMAL";
    parameter CLKAMUX = "CLKA";
    parameter DATA_WIDTH_B = 18, REGMODE_B = "NOREG", CSDECODE_B = "0b000";
    parameter [127:0] WRITEMODE_B = "NORMAL";
    parameter CLKBMUX = "CLKB";
    parameter RESETMODE = "SYNC", ASYNC_RESET_RELEASE = "SYNC", GSR = "ENABLED";
    parameter [319:0] INITVAL_00 = 0;
    parameter [319:0] INITVAL_01 = 0;
    parameter [319:0] INITVAL_02 = 0;
    parameter [319:0] INITVAL_03 = 0;
    parameter [319:0] INITVAL_04 = 0;
    parameter [319:0] INITVAL_05 = 0;
    parameter [319:0] INITVAL_06 = 0;
    parameter [319:0] INITVAL_07 = 0;
    parameter [319:0] INITVAL_08 = 0;
    parameter [319:0] INITVAL_09 = 0;
    parameter [319:0] INITVAL_0A = 0;
    parameter [319:0] INITVAL_0B = 0;
    parameter [319:0] INITVAL_0C = 0;
    parameter [319:0] INITVAL_0D = 0;
    parameter [319:0] INITVAL_0E = 0;
    parameter [319:0] INITVAL_0F = 0;
    parameter [319:0] INITVAL_10 = 0;
    parameter [319:0] INITVAL_11 = 0;
    parameter [319:0] INITVAL_12 = 0;
    parameter [319:0] INITVAL_13 = 0;
    parameter [319:0] INITVAL_14 = 0;
    parameter [319:0] INITVAL_15 = 0;
    parameter [319:0] INITVAL_16 = 0;
    parameter [319:0] INITVAL_17 = 0;
    parameter [319:0] INITVAL_18 = 0;
    parameter [319:0] INITVAL_19 = 0;
    parameter [319:0] INITVAL_1A = 0;
    parameter [319:0] INITVAL_1B = 0;
    parameter [319:0] INITVAL_1C = 0;
    parameter [319:0] INITVAL_1D = 0;
    parameter [319:0] INITVAL_1E = 0;
    parameter [319:0] INITVAL_1F = 0;
    parameter [319:0] INITVAL_20 = 0;
    parameter [319:0] INITVAL_21 = 0;
    parameter [319:0] INITVAL_22 = 0;
    parameter [319:0] INITVAL_23 = 0;
    parameter [319:0] INITVAL_24 = 0;
    parameter [319:0] INITVAL_25 = 0;
    parameter [319:0] INITVAL_26 = 0;
    parameter [319:0] INITVAL_27 = 0;
    parameter [319:0] INITVAL_28 = 0;
    parameter [319:0] INITVAL_29 = 0;
    parameter [319:0] INITVAL_2A = 0;
    parameter [319:0] INITVAL_2B = 0;
    parameter [319:0] INITVAL_2C = 0;
    parameter [319:0] INITVAL_2D = 0;
    parameter [319:0] INITVAL_2E = 0;
    parameter [319:0] INITVAL_2F = 0;
    parameter [319:0] INITVAL_30 = 0;
    parameter [319:0] INITVAL_31 = 0;
    parameter [319:0] INITVAL_32 = 0;
    parameter [319:0] INITVAL_33 = 0;
    parameter [319:0] INITVAL_34 = 0;
    parameter [319:0] INITVAL_35 = 0;
    parameter [319:0] INITVAL_36 = 0;
    parameter [319:0] INITVAL_37 = 0;
    parameter [319:0] INITVAL_38 = 0;
    parameter [319:0] INITVAL_39 = 0;
    parameter [319:0] INITVAL_3A = 0;
    parameter [319:0] INITVAL_3B = 0;
    parameter [319:0] INITVAL_3C = 0;
    parameter [319:0] INITVAL_3D = 0;
    parameter [319:0] INITVAL_3E = 0;
    parameter [319:0] INITVAL_3F = 0;
    localparam [20479:0] INIT = {
        INITVAL_3F, INITVAL_3E, INITVAL_3D, INITVAL_3C, INITVAL_3B, INITVAL_3A, INITVAL_39,
        INITVAL_38, INITVAL_37, INITVAL_36, INITVAL_35, INITVAL_34, INITVAL_33, INITVAL_32,
        INITVAL_31, INITVAL_30, INITVAL_2F, INITVAL_2E, INITVAL_2D, INITVAL_2C, INITVAL_2B,
        INITVAL_2A, INITVAL_29, INITVAL_28, INITVAL_27, INITVAL_26, INITVAL_25, INITVAL_24,
        INITVAL_23, INITVAL_22, INITVAL_21, INITVAL_20, INITVAL_1F, INITVAL_1E, INITVAL_1D,
        INITVAL_1C, INITVAL_1B, INITVAL_1A, INITVAL_19, INITVAL_18, INITVAL_17, INITVAL_16,
        INITVAL_15, INITVAL_14, INITVAL_13, INITVAL_12, INITVAL_11, INITVAL_10, INITVAL_0F,
        INITVAL_0E, INITVAL_0D, INITVAL_0C, INITVAL_0B, INITVAL_0A, INITVAL_09, INITVAL_08,
        INITVAL_07, INITVAL_06, INITVAL_05, INITVAL_04, INITVAL_03, INITVAL_02, INITVAL_01,
        INITVAL_00
    };

    localparam WIDE_A = DATA_WIDTH_A == 36, WIDE_B = DATA_WIDTH_B == 36;
    reg [17:0] words [0:1023];  // each of two bytes of nine bits
    integer k;
    initial
        for (k = 0; k < 1024; k = k + 1) words[k] = INIT[20 * k +: 18];

    wire [13:0] at_A = {
        ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
    wire [17:0] in_A = {
        DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5,
        DIA4, DIA3, DIA2, DIA1, DIA0};
    reg [17:0] narrow_A = 0, wide_A = 0;  // port B's clock moves port A's pins of a wide word
    wire [17:0] out_A = WIDE_B ? wide_A : narrow_A;
    assign {
        DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5,
        DOA4, DOA3, DOA2, DOA1, DOA0} = out_A;
    wire [13:0] at_B = {
        ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
    wire [17:0] in_B = {
        DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5,
        DIB4, DIB3, DIB2, DIB1, DIB0};
    reg [17:0] out_B = 0;
    assign {
        DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5,
        DOB4, DOB3, DOB2, DOB1, DOB0} = out_B;

    // Which bits of a word an access covers; narrow widths leave out each byte's ninth bit.
    function [17:0] covered(input integer width, input [13:0] at);
        case (width)
            1: covered = at[3] ? 18'h00200 << at[2:0] : 18'h00001 << at[2:0];
            2: covered = at[3] ? 18'h00600 << (2 * at[2:1]) : 18'h00003 << (2 * at[2:1]);
            4: covered = at[3] ? 18'h01e00 << (4 * at[2]) : 18'h0000f << (4 * at[2]);
            9: covered = at[3] ? 18'h3fe00 : 18'h001ff;
            default: covered = {{9{at[1]}}, {9{at[0]}}};
        endcase
    endfunction
    function integer first(input integer width, input [13:0] at);
        case (width)
            1: first = (at[3] ? 9 : 0) + at[2:0];
            2: first = (at[3] ? 9 : 0) + 2 * at[2:1];
            4: first = (at[3] ? 9 : 0) + 4 * at[2];
            9: first = at[3] ? 9 : 0;
            default: first = 0;
        endcase
    endfunction
    function [17:0] shown(input integer width, input [13:0] at, input [17:0] word);
        shown = (word >> first(width, at)) & (width >= 18 ? 18'h3ffff : (1 << width) - 1);
    endfunction

    wire write_A = CEA & WEA & ~CSA2 & ~CSA1 & ~CSA0;
    wire write_B = CEB & WEB & ~CSB2 & ~CSB1 & ~CSB0 & ~WIDE_A;
    wire [17:0] mask_A = covered(DATA_WIDTH_A, at_A), mask_B = covered(DATA_WIDTH_B, at_B);
    wire [17:0] put_A = in_A << first(DATA_WIDTH_A, at_A);
    wire [17:0] put_B = in_B << first(DATA_WIDTH_B, at_B);
    wire [9:0] row_A = at_A[13:4], row_B = at_B[13:4];
    // Bits of the lower and upper word of a pair that each port writes.
    wire [17:0] upper_A = {{9{at_A[3]}}, {9{at_A[2]}}};
    wire [17:0] even_A = {18{write_A & (WIDE_A | ~row_A[0])}} & mask_A;
    wire [17:0] odd_A = {18{write_A & (WIDE_A | row_A[0])}} & (WIDE_A ? upper_A : mask_A);
    localparam TURNED_A = CLKAMUX == "INV", TURNED_B = CLKBMUX == "INV";
    localparam HALF = TURNED_A != TURNED_B;
    wire clock_A = CLKA ^ TURNED_A, clock_B = CLKB ^ TURNED_B;
    wire met = ~HALF & row_A[9:1] == row_B[9:1];
    wire [17:0] clash_A = {18{met & write_B & row_A == row_B}} & mask_B;
    wire [17:0] clash_even = {18{met}} & even_A, clash_odd = {18{met}} & odd_A;
    wire [17:0] old_A = words[row_A] ^ clash_A;
    wire [17:0] old_B = words[row_B] ^ (row_B[0] ? clash_odd : clash_even);

    // Port A writes the lower half of a wide word, and port B's pins hold the upper. Where port B
    // writes, its clock is port A's; a memory that is only read has no clock at port A.
    always @(posedge clock_A) begin
        if (write_A & WIDE_A) begin
            words[{row_A[9:1], 1'b0}] <= words[{row_A[9:1], 1'b0}] & ~mask_A | in_A & mask_A;
            words[{row_A[9:1], 1'b1}] <= words[{row_A[9:1], 1'b1}] & ~upper_A
                | in_B & upper_A;
        end else if (write_A)
            words[row_A] <= words[row_A] & ~mask_A | put_A & mask_A;
        if (write_B)
            words[row_B] <= words[row_B] & ~mask_B | put_B & mask_B;
        if (RSTA)
            narrow_A <= 0;
        else if (CEA & (~WEA | WRITEMODE_A == "READBEFOREWRITE"))
            narrow_A <= shown(DATA_WIDTH_A, at_A, old_A);
        else if (CEA & WRITEMODE_A == "WRITETHROUGH")
            narrow_A <= in_A;
    end
    always @(posedge clock_B) begin
        if (RSTB) wide_A <= 0;
        else if (CEB) wide_A <= words[{row_B[9:1], 1'b0}] ^ clash_even;
        if (RSTB)
            out_B <= 0;
        else if (CEB & WIDE_B)
            out_B <= words[{row_B[9:1], 1'b1}] ^ clash_odd;
        else if (CEB & (~WEB | WRITEMODE_B == "READBEFOREWRITE" | WIDE_A))
            out_B <= shown(DATA_WIDTH_B, at_B, old_B);
        else if (CEB & WRITEMODE_B == "WRITETHROUGH")
            out_B <= in_B;
    end
endmodule
