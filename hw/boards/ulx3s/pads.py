"""The ULX3S's pads and clock: the top module in Verilog, and the constraints that place its ports.

Pins: schematics and constraints of ULX3S v2 and v3 (github.com/emard/ulx3s, doc/constraints).
Cells: Lattice FPGA-DS-02012 (ECP5), FPGA-TN-02200 (sysCLOCK PLL).
"""

from __future__ import annotations

from dataclasses import dataclass

from flightllm.hw.boards.ulx3s.shell import SHELL
from flightllm.spec.errors import InputError

__all__ = ["TOP", "Pll", "constraints", "find_pll", "top_verilog"]

TOP = "ulx3s"
"""Of the module."""
INPUT_MHZ = 25
VCO_MHZ = (400.0, 800.0)
LEAST_PHASE_MHZ = 3.125
TOLERANCE = 0.005

_SDRAM_BUSES = {
    "a": "M20 M19 L20 L19 K20 K19 K18 J20 J19 H20 N19 G20 G19",
    "ba": "P19 N20", "dqm": "U19 E20",
    "d": "J16 L18 M18 N18 P18 T18 T17 U20 E19 D20 D19 C20 E18 F18 J18 J17",
}  # fmt: skip
_SINGLE = {
    "clk_25mhz": "G2", "ftdi_txd": "M1", "ftdi_rxd": "L4", "wifi_gpio0": "L2",
    "sdram_clk": "F19", "sdram_cke": "F20", "sdram_csn": "P20", "sdram_wen": "T20",
    "sdram_rasn": "R20", "sdram_casn": "T19",
}  # fmt: skip
_LEDS = "B2 C2 C1 D2 D1 E2 E1 H3"


@dataclass(frozen=True)
class Pll:
    """Divisors of an EHXPLLL whose first output is fed back: output = input * feedback / reference.

    Parameters
    ----------
    reference, feedback, output : divisors. mhz : of the output.
    """

    reference: int
    feedback: int
    output: int
    mhz: float


def find_pll(mhz: float) -> Pll:
    """The divisors that come nearest to a frequency.

    Raises
    ------
    InputError
        When none come within half a percent.
    """
    best: Pll | None = None
    for reference in range(1, 9):
        phase = INPUT_MHZ / reference
        if phase < LEAST_PHASE_MHZ:
            break
        feedback = max(1, round(mhz / phase))
        made = phase * feedback
        output = round(sum(VCO_MHZ) / 2 / made)
        if not 1 <= output <= 128 or not VCO_MHZ[0] <= output * made <= VCO_MHZ[1]:
            continue
        if best is None or abs(made - mhz) < abs(best.mhz - mhz):
            best = Pll(reference, feedback, output, made)
    if best is None or abs(best.mhz - mhz) > TOLERANCE * mhz:
        raise InputError(f"clock_mhz: {mhz:g} is no frequency of the ULX3S's PLL")
    return best


def _places() -> dict[str, str]:
    """The pin of each port."""
    out = dict(_SINGLE)
    for bus, pins in _SDRAM_BUSES.items():
        out |= {f"sdram_{bus}[{k}]": pin for k, pin in enumerate(pins.split())}
    return out | {f"led[{k}]": pin for k, pin in enumerate(_LEDS.split())}


def constraints() -> str:
    """ulx3s.lpf."""
    lines = [
        "# Pins of the ULX3S, all of its 3.3 V banks.",
        f'FREQUENCY PORT "clk_25mhz" {INPUT_MHZ} MHZ;',
    ]
    for port, pin in _places().items():
        lines.append(f'LOCATE COMP "{port}" SITE "{pin}";')
        drive = "" if port in ("clk_25mhz", "ftdi_txd") else " DRIVE=4"
        pull = "UP" if port.startswith("ftdi") else "NONE"
        lines.append(f'IOBUF PORT "{port}" IO_TYPE=LVCMOS33 PULLMODE={pull}{drive};')
    return "\n".join([*lines, ""])


def top_verilog(mhz: float) -> str:
    """ulx3s.v: the clock, the reset until it is stable, the pads.

    The memory's clock is the inverse of the core's, so that each side reads in the middle of what
    the other says; words from the memory are registered once. LED 0: the clock is stable; LED 1:
    the interrupt. wifi_gpio0 high keeps the radio's processor from reprogramming the chip.

    Parameters
    ----------
    mhz : of the core's clock.
    """
    pll = find_pll(mhz)
    return f"""\
// The ULX3S's top: {INPUT_MHZ} MHz to {pll.mhz:g} MHz, reset, pads.
module {TOP} (
    input wire clk_25mhz,
    input wire ftdi_txd,
    output wire ftdi_rxd,
    output wire wifi_gpio0,
    output wire [7:0] led,
    output wire sdram_clk,
    output wire sdram_cke,
    output wire sdram_csn,
    output wire sdram_rasn,
    output wire sdram_casn,
    output wire sdram_wen,
    output wire [1:0] sdram_ba,
    output wire [12:0] sdram_a,
    output wire [1:0] sdram_dqm,
    inout wire [15:0] sdram_d
);
    wire clk, locked;
    EHXPLLL #(
        .CLKI_DIV({pll.reference}), .CLKFB_DIV({pll.feedback}), .CLKOP_DIV({pll.output}),
        .CLKOP_CPHASE({pll.output - 1}), .CLKOP_FPHASE(0), .CLKOP_ENABLE("ENABLED"),
        .FEEDBK_PATH("CLKOP"), .STDBY_ENABLE("DISABLED"), .PLLRST_ENA("DISABLED"),
        .INTFB_WAKE("DISABLED"), .OUTDIVIDER_MUXA("DIVA"), .DPHASE_SOURCE("DISABLED")
    ) pll (
        .CLKI(clk_25mhz), .CLKFB(clk), .CLKOP(clk), .LOCK(locked), .RST(1'b0), .STDBY(1'b0),
        .PHASESEL0(1'b0), .PHASESEL1(1'b0), .PHASEDIR(1'b0), .PHASESTEP(1'b0), .PHASELOADREG(1'b0),
        .PLLWAKESYNC(1'b0), .ENCLKOP(1'b0)
    );

    reg [3:0] waiting = 4'b1111;
    always @(posedge clk) waiting <= {{waiting[2:0], ~locked}};

    wire interrupt, oe;
    wire [15:0] out, in;
    reg [15:0] taken;
    always @(posedge clk) taken <= in;

    {SHELL} shell (
        .clk(clk), .rst(waiting[3]), .received(ftdi_txd), .sent(ftdi_rxd), .interrupt(interrupt),
        .sdram_cke(sdram_cke), .sdram_cs_n(sdram_csn), .sdram_ras_n(sdram_rasn),
        .sdram_cas_n(sdram_casn), .sdram_we_n(sdram_wen), .sdram_ba(sdram_ba), .sdram_a(sdram_a),
        .sdram_dqm(sdram_dqm), .sdram_dq_o(out), .sdram_dq_oe(oe), .sdram_dq_i(taken)
    );

    ODDRX1F memory_clock (.D0(1'b0), .D1(1'b1), .SCLK(clk), .RST(1'b0), .Q(sdram_clk));
    genvar k;
    generate
        for (k = 0; k < 16; k = k + 1) begin : data
            BB pad (.I(out[k]), .T(~oe), .O(in[k]), .B(sdram_d[k]));
        end
    endgenerate
    assign wifi_gpio0 = 1'b1;
    assign led = {{6'b0, interrupt, locked}};
endmodule
"""
