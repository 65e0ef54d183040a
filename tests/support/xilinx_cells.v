// Lookup tables and carry chains as Yosys' models say (tests/hw/test_netlist_cells.py), but written
// so that Verilator makes one expression of a table and sees that no carry depends on itself.
module LUT1(output O, input I0);
    parameter [1:0] INIT = 0;
    assign O = INIT[I0];
endmodule

module LUT2(output O, input I0, I1);
    parameter [3:0] INIT = 0;
    assign O = INIT[{I1, I0}];
endmodule

module LUT3(output O, input I0, I1, I2);
    parameter [7:0] INIT = 0;
    assign O = INIT[{I2, I1, I0}];
endmodule

module LUT4(output O, input I0, I1, I2, I3);
    parameter [15:0] INIT = 0;
    assign O = INIT[{I3, I2, I1, I0}];
endmodule

module LUT5(output O, input I0, I1, I2, I3, I4);
    parameter [31:0] INIT = 0;
    assign O = INIT[{I4, I3, I2, I1, I0}];
endmodule

module LUT6(output O, input I0, I1, I2, I3, I4, I5);
    parameter [63:0] INIT = 0;
    assign O = INIT[{I5, I4, I3, I2, I1, I0}];
endmodule

module CARRY4(output [3:0] CO, O, input CI, CYINIT, input [3:0] DI, S);
    wire c0 = CI | CYINIT;
    wire c1 = S[0] ? c0 : DI[0];
    wire c2 = S[1] ? c1 : DI[1];
    wire c3 = S[2] ? c2 : DI[2];
    wire c4 = S[3] ? c3 : DI[3];
    assign O = S ^ {c3, c2, c1, c0};
    assign CO = {c4, c3, c2, c1};
endmodule
