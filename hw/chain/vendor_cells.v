// Ports and parameters of AMD's primitives, without contents: UG579 (DSP48E2), UG479 (DSP48E1),
// AM004 (DSP58).
(* blackbox *)
module DSP48E1 #(
    parameter integer ACASCREG = 1, parameter integer ADREG = 1, parameter integer ALUMODEREG =
    1, parameter integer AREG = 1, parameter integer BCASCREG = 1, parameter integer BREG = 1,
    parameter integer CARRYINREG = 1, parameter integer CARRYINSELREG = 1, parameter integer
    CREG = 1, parameter integer DREG = 1, parameter integer INMODEREG = 1, parameter integer
    MREG = 1, parameter integer OPMODEREG = 1, parameter integer PREG = 1, parameter USE_DPORT =
    "", parameter USE_MULT = "", parameter USE_SIMD = ""
) (
    output [29:0] ACOUT, output [17:0] BCOUT, output CARRYCASCOUT, output [3:0] CARRYOUT, output
    MULTSIGNOUT, output OVERFLOW, output [47:0] P, output PATTERNBDETECT, output PATTERNDETECT,
    output [47:0] PCOUT, output UNDERFLOW, input [29:0] A, input [29:0] ACIN, input [3:0]
    ALUMODE, input [17:0] B, input [17:0] BCIN, input [47:0] C, input CARRYCASCIN, input
    CARRYIN, input [2:0] CARRYINSEL, input CEA1, input CEA2, input CEAD, input CEALUMODE, input
    CEB1, input CEB2, input CEC, input CECARRYIN, input CECTRL, input CED, input CEINMODE, input
    CEM, input CEP, input CLK, input [24:0] D, input [4:0] INMODE, input MULTSIGNIN, input [6:0]
    OPMODE, input [47:0] PCIN, input RSTA, input RSTALLCARRYIN, input RSTALUMODE, input RSTB,
    input RSTC, input RSTCTRL, input RSTD, input RSTINMODE, input RSTM, input RSTP
);
endmodule

(* blackbox *)
module DSP48E2 #(
    parameter integer ACASCREG = 1, parameter integer ADREG = 1, parameter integer ALUMODEREG =
    1, parameter integer AREG = 1, parameter integer BCASCREG = 1, parameter integer BREG = 1,
    parameter integer CARRYINREG = 1, parameter integer CARRYINSELREG = 1, parameter integer
    CREG = 1, parameter integer DREG = 1, parameter integer INMODEREG = 1, parameter integer
    MREG = 1, parameter integer OPMODEREG = 1, parameter integer PREG = 1, parameter AMULTSEL =
    "", parameter BMULTSEL = "", parameter PREADDINSEL = "", parameter USE_MULT = "", parameter
    USE_SIMD = ""
) (
    output [29:0] ACOUT, output [17:0] BCOUT, output CARRYCASCOUT, output [3:0] CARRYOUT, output
    MULTSIGNOUT, output OVERFLOW, output [47:0] P, output PATTERNBDETECT, output PATTERNDETECT,
    output [47:0] PCOUT, output UNDERFLOW, output [7:0] XOROUT, input [29:0] A, input [29:0]
    ACIN, input [3:0] ALUMODE, input [17:0] B, input [17:0] BCIN, input [47:0] C, input
    CARRYCASCIN, input CARRYIN, input [2:0] CARRYINSEL, input CEA1, input CEA2, input CEAD,
    input CEALUMODE, input CEB1, input CEB2, input CEC, input CECARRYIN, input CECTRL, input
    CED, input CEINMODE, input CEM, input CEP, input CLK, input [26:0] D, input [4:0] INMODE,
    input MULTSIGNIN, input [8:0] OPMODE, input [47:0] PCIN, input RSTA, input RSTALLCARRYIN,
    input RSTALUMODE, input RSTB, input RSTC, input RSTCTRL, input RSTD, input RSTINMODE, input
    RSTM, input RSTP
);
endmodule

(* blackbox *)
module DSP58 #(
    parameter integer ACASCREG = 1, parameter integer ADREG = 1, parameter integer ALUMODEREG =
    1, parameter integer AREG = 1, parameter integer BCASCREG = 1, parameter integer BREG = 1,
    parameter integer CARRYINREG = 1, parameter integer CARRYINSELREG = 1, parameter integer
    CREG = 1, parameter integer DREG = 1, parameter integer INMODEREG = 1, parameter integer
    MREG = 1, parameter integer OPMODEREG = 1, parameter integer PREG = 1, parameter DSP_MODE =
    "", parameter USE_MULT = "", parameter USE_SIMD = ""
) (
    output [33:0] ACOUT, output [23:0] BCOUT, output CARRYCASCOUT, output [3:0] CARRYOUT, output
    MULTSIGNOUT, output OVERFLOW, output [57:0] P, output PATTERNBDETECT, output PATTERNDETECT,
    output [57:0] PCOUT, output UNDERFLOW, output [7:0] XOROUT, input [33:0] A, input [33:0]
    ACIN, input [3:0] ALUMODE, input [23:0] B, input [23:0] BCIN, input [57:0] C, input
    CARRYCASCIN, input CARRYIN, input [2:0] CARRYINSEL, input CEA1, input CEA2, input CEAD,
    input CEALUMODE, input CEB1, input CEB2, input CEC, input CECARRYIN, input CECTRL, input
    CED, input CEINMODE, input CEM, input CEP, input CLK, input [26:0] D, input [4:0] INMODE,
    input MULTSIGNIN, input [2:0] NEGATE, input ASYNC_RST, input [8:0] OPMODE, input [57:0]
    PCIN, input RSTA, input RSTALLCARRYIN, input RSTALUMODE, input RSTB, input RSTC, input
    RSTCTRL, input RSTD, input RSTINMODE, input RSTM, input RSTP
);
endmodule
