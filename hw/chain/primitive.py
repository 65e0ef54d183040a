"""One DSP slice as the chains use it: AMD's primitive for synthesis, a model of it for simulation.

Sources: UG579 (DSP48E2), UG479 (DSP48E1), AM004 (DSP58, INT8 dot product). The model has the
widths, signs and registers of the modes used here and of nothing else:

- DSP48E1, DSP48E2: P = W + Z + (A + D) * B; A, D, B enter at cycle 0, P is there at 4 (A, D; AD; M;
  P, and B through both its registers).
- DSP58: P = Z + a0*b0 + a1*b1 + a2*b2, a of 9 bits, b of 8; P is there at 3 (A, B; M; P).

Z is 0 or PCIN by OPMODE, which is registered once, as C is; W is 0 or C (not in DSP48E1).
"""

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["DSP48E1", "DSP48E2", "DSP58", "Dsp", "DspKind"]


@dataclass(frozen=True)
class DspKind:
    """Widths of a primitive.

    Attributes
    ----------
    name : of AMD's library cell. a_port : its A port. a, b : the multiplier's operands. p : sums.
    opmode : width of OPMODE. w_mux : C can be added beside Z. triple : three products a slice.
    latency : cycles from operands to P.
    """

    name: str
    a_port: int
    a: int
    b: int
    p: int
    opmode: int
    w_mux: bool
    triple: bool
    latency: int


DSP48E1 = DspKind("DSP48E1", 30, 25, 18, 48, 7, False, False, 4)
DSP48E2 = DspKind("DSP48E2", 30, 27, 18, 48, 9, True, False, 4)
DSP58 = DspKind("DSP58", 34, 27, 24, 58, 9, True, True, 3)

_ENABLES = (
    "CEA1", "CEA2", "CEAD", "CEALUMODE", "CEB1", "CEB2", "CEC", "CECARRYIN", "CECTRL", "CED",
    "CEINMODE", "CEM", "CEP",
)  # fmt: skip
_RESETS = (
    "RSTA", "RSTALLCARRYIN", "RSTALUMODE", "RSTB", "RSTC", "RSTCTRL", "RSTD", "RSTINMODE", "RSTM",
    "RSTP",
)  # fmt: skip
_REGISTERS = {
    "ACASCREG": 1, "ADREG": 1, "ALUMODEREG": 1, "AREG": 1, "CARRYINREG": 1, "CARRYINSELREG": 1,
    "CREG": 1, "DREG": 1, "INMODEREG": 1, "MREG": 1, "OPMODEREG": 1, "PREG": 1,
}  # fmt: skip


class Dsp(wiring.Component):
    """One slice.

    Parameters
    ----------
    kind : the primitive.
    cascaded : PCIN is connected. corrected : W is C.
    modelled : the model, not the primitive.

    Members
    -------
    en : the whole slice steps.
    a, d, b : operands; triple kinds have three numbers in each of a and b, and no d.
    c : added with `corrected`, to the P of the next cycle but one.
    join : Z is PCIN, in the P of the next cycle but one; else Z is 0.
    pcin : cascade in. p : sum. pcout : the same, on the cascade's wires.
    """

    def __init__(self, kind: DspKind, *, cascaded: bool, corrected: bool = False,
                 modelled: bool = False) -> None:  # fmt: skip
        if corrected and not kind.w_mux:
            raise ValueError(f"{kind.name} cannot add C beside the cascade")
        self.kind, self.modelled = kind, modelled
        self.cascaded, self.corrected = cascaded, corrected
        super().__init__({
            "en": In(1),
            "a": In(signed(kind.a)),
            "d": In(signed(kind.a)),
            "b": In(signed(kind.b)),
            "c": In(signed(kind.p)),
            "join": In(1),
            "pcin": In(kind.p),
            "p": Out(signed(kind.p)),
            "pcout": Out(kind.p),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        opmode = Signal(self.kind.opmode)
        w = Const(3 if self.corrected else 0, 2)
        join = self.join if self.cascaded else Const(0, 1)
        # X = Y = 01 is the product; Z = 001 is PCIN
        m.d.comb += opmode.eq(Cat(Const(0b0101, 4), join, Const(0, 2), w))
        if self.modelled:
            self._model(m, opmode)
        else:
            m.submodules.dsp = self._instance(opmode)
        return m

    def _instance(self, opmode: Signal) -> Instance:
        kind = self.kind
        parameters: dict[str, Any] = dict(_REGISTERS)
        ports: dict[str, Any] = {
            "i_CLK": ClockSignal(), "i_B": self.b, "i_C": self.c, "i_D": self.d,
            "i_PCIN": self.pcin, "i_OPMODE": opmode, "i_ALUMODE": Const(0, 4),
            "i_CARRYIN": Const(0, 1), "i_CARRYINSEL": Const(0, 3),
            "o_P": self.p, "o_PCOUT": self.pcout,
        }  # fmt: skip
        sign = self.a[-1].replicate(kind.a_port - kind.a)
        ports["i_A"] = Cat(self.a, sign)
        ports |= {f"i_{name}": self.en for name in _ENABLES}
        ports |= {f"i_{name}": Const(0, 1) for name in _RESETS}
        if kind.triple:
            parameters |= {"DSP_MODE": "INT8", "BREG": 1, "BCASCREG": 1, "USE_SIMD": "ONE58"}
            ports |= {"i_NEGATE": Const(0, 3), "i_ASYNC_RST": Const(0, 1)}
        else:
            parameters |= {"BREG": 2, "BCASCREG": 2, "USE_SIMD": "ONE48"}
        # INMODE[2] lets D into the pre-adder, whose other operand is A2
        ports["i_INMODE"] = Const(0 if kind.triple else 0b00100, 5)
        if kind is DSP48E2:
            parameters |= {"AMULTSEL": "AD", "BMULTSEL": "B", "PREADDINSEL": "A"}
        elif kind is DSP48E1:
            parameters["USE_DPORT"] = "TRUE"
        parameters["USE_MULT"] = "MULTIPLY"
        return Instance(kind.name, **{f"p_{k}": v for k, v in parameters.items()}, **ports)

    def _model(self, m: Module, opmode: Signal) -> None:
        kind = self.kind

        def register(value: Value, shape: Any, name: str) -> Signal:
            out = Signal(shape, name=name, reset_less=True)
            with m.If(self.en):
                m.d.sync += out.eq(value)
            return out

        a = register(self.a, signed(kind.a), "areg")
        b = register(self.b, signed(kind.b), "breg")
        if kind.triple:
            total: Value = Const(0)
            for k in range(3):
                total = total + a[9 * k : 9 * k + 9].as_signed() * b[8 * k : 8 * k + 8].as_signed()
            product = register(total, signed(kind.a + kind.b), "mreg")
        else:
            d = register(self.d, signed(kind.a), "dreg")
            ad = register(a + d, signed(kind.a), "adreg")
            b2 = register(b, signed(kind.b), "b2reg")
            product = register(ad * b2, signed(kind.a + kind.b), "mreg")
        mode = register(opmode, kind.opmode, "opmodereg")
        c = register(self.c, signed(kind.p), "creg")
        z = Mux(mode[4:7] == 1, self.pcin, 0)
        w = Mux(mode[7:9] == 3, c, 0) if kind.w_mux else Const(0)
        m.d.comb += self.p.eq(register(z + w + product, signed(kind.p), "preg"))
        m.d.comb += self.pcout.eq(self.p)
