"""Equal components become one module, others do not; nothing changes without a library."""

from __future__ import annotations

from amaranth.back import rtlil
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.sharing import Library, shared


@shared()
class Part(wiring.Component):
    """A register and an addition."""

    def __init__(self, width: int, step: int = 1) -> None:
        self.step = step
        super().__init__({"i": In(width), "o": Out(width)})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.d.sync += self.o.eq(self.i + self.step)
        return m


class Chain(wiring.Component):
    """Parts one behind the other."""

    def __init__(self, *parts: Part) -> None:
        self.parts = parts
        super().__init__({"i": In(8), "o": Out(8)})

    def elaborate(self, platform) -> Module:
        m = Module()
        value = self.i
        for k, part in enumerate(self.parts):
            m.submodules[f"part{k}"] = part
            m.d.comb += part.i.eq(value)
            value = part.o
        m.d.comb += self.o.eq(value)
        return m


def made(*parts: Part) -> tuple[str, Library]:
    library = Library()
    return rtlil.convert(Chain(*parts), platform=library), library


def test_equal_parts_are_one_module() -> None:
    text, library = made(Part(8), Part(width=8, step=1), Part(8, 1))
    assert list(library.texts) == ["Part"]
    assert text.count("cell \\Part ") == 3
    assert library.texts["Part"].count("attribute \\top") == 0


def test_different_parts_are_not() -> None:
    text, library = made(Part(8), Part(8, 2), Part(8))
    assert list(library.texts) == ["Part", "Part_2"]
    assert text.count("cell \\Part ") == 2 and text.count("cell \\Part_2 ") == 1


def test_without_a_library_it_is_a_submodule() -> None:
    text = rtlil.convert(Chain(Part(8), Part(8)))
    assert "module \\top.part0" in text and "module \\top.part1" in text
