"""The hardware configuration: one validated, frozen record from which everything else derives.

RTL parameters, buffer sizes, tile sizes, memory layout and timing read it; a program carries its
digest and a device refuses a program made for another one, naming the field that differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flightllm.spec.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:  # PYNQ images carry Python 3.10
    import tomli as tomllib

__all__ = ["HwConfig", "MemoryConfig", "Slr", "load_config", "preset_names"]

PRESETS = Path(__file__).resolve().parent / "presets"
DSP_KINDS = ("dsp48e2", "dsp58", "dsp48e1", "inferred")
MEMORY_KINDS = ("hbm2", "hbm2e", "ddr4", "ddr3", "sdram", "ideal")


def _check(ok: bool, name: str, value: object, rule: str) -> None:
    if not ok:
        raise InputError(f"{name}: {value} is impossible, it must be {rule}")


def _power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True)
class MemoryConfig:
    """The device memory behind the cores' channels.

    Parameters
    ----------
    kind : one of `MEMORY_KINDS`.
    channel_mib : capacity of one channel, MiB.
    peak_gb_s : data-sheet peak of the whole memory, 10^9 byte/s.
    port_bits, port_mhz : one channel's native AXI port.
    latency_cycles : read latency in core cycles that the simulators default to.
    """

    kind: str
    channel_mib: int
    peak_gb_s: float
    port_bits: int
    port_mhz: float
    latency_cycles: int = 100

    def __post_init__(self) -> None:
        _check(self.kind in MEMORY_KINDS, "memory.kind", self.kind, f"one of {MEMORY_KINDS}")
        _check(self.channel_mib > 0, "memory.channel_mib", self.channel_mib, "positive")
        _check(0 < self.peak_gb_s < 1e5, "memory.peak_gb_s", self.peak_gb_s, "in (0, 100000)")
        _check(
            _power_of_two(self.port_bits) and self.port_bits >= 16,
            "memory.port_bits", self.port_bits, "a power of two of at least 16",
        )  # fmt: skip
        _check(0 < self.port_mhz <= 2000, "memory.port_mhz", self.port_mhz, "in (0, 2000]")
        _check(self.latency_cycles > 0, "memory.latency_cycles", self.latency_cycles, "positive")


@dataclass(frozen=True)
class Slr:
    """What one die (super logic region) offers a user after the shell; counts of each kind."""

    dsp: int
    lut: int
    ff: int
    bram36: int
    uram: int

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            _check(value >= 0, f"slrs.{entry.name}", value, "0 or more")


@dataclass(frozen=True)
class HwConfig:
    """One accelerator.

    Parameters
    ----------
    name, part, dsp_kind : the board's name, the FPGA, the multiplier primitive (`DSP_KINDS`).
    clock_mhz : core clock.
    channels : memory channels of each core; one core per SLR.
    beat_bytes : bytes a channel delivers to the core per core cycle at most; 16, 32 or 64.
    macs_per_channel : INT8 multiply-accumulates per cycle beside each channel (rows come in pairs,
        two products share a DSP48).
    chain_length : DSPs in one CSD-chain.
    float_lanes : float32 group results per cycle beside each channel.
    sfu_lanes : float32 elements per cycle of each core's special function unit; rows of the F
        buffer have as many words, two at least.
    prefetch_bytes : weight FIFO of each channel.
    act_bytes : INT8 activation buffer of each core.
    float_words : float32 buffer of each core.
    prefill_tile : tokens of a prompt that go through the layers together.
    attention_tile : tokens of a tile whose scores are on chip together.
    mv_vectors : vectors that share one weight stream in MV mode (query heads of a KV head).
    program_words, param_words : instruction and parameter memory of each core, 32-bit words.
    top_k : logits that TOPK can hand to the host.
    memory : the device memory.
    slrs : resources per SLR, one a core, or none where they are not known.
    """

    name: str
    part: str
    dsp_kind: str
    clock_mhz: float
    channels: tuple[int, ...]
    beat_bytes: int
    macs_per_channel: int
    chain_length: int
    float_lanes: int
    sfu_lanes: int
    prefetch_bytes: int
    act_bytes: int
    float_words: int
    prefill_tile: int
    attention_tile: int
    mv_vectors: int
    program_words: int
    param_words: int
    top_k: int
    memory: MemoryConfig
    slrs: tuple[Slr, ...] = field(default=())

    def __post_init__(self) -> None:
        kinds = DSP_KINDS
        _check(bool(self.name), "name", repr(self.name), "not empty")
        _check(self.dsp_kind in kinds, "dsp_kind", self.dsp_kind, f"one of {kinds}")
        _check(0 < self.clock_mhz <= 1000, "clock_mhz", self.clock_mhz, "in (0, 1000]")
        _check(1 <= len(self.channels) <= 8, "channels", self.channels, "a list of 1 to 8 cores")
        for count in self.channels:
            _check(1 <= count <= 64, "channels", count, "1 to 64 in each core")
        _check(self.beat_bytes in (16, 32, 64), "beat_bytes", self.beat_bytes, "16, 32 or 64")
        for name in ("chain_length", "float_lanes", "sfu_lanes", "mv_vectors", "top_k"):
            _check(getattr(self, name) > 0, name, getattr(self, name), "positive")
        _check(
            self.macs_per_channel % 32 == 0 and self.macs_per_channel > 0,
            "macs_per_channel", self.macs_per_channel, "a positive multiple of 32",
        )  # fmt: skip
        _check(_power_of_two(self.sfu_lanes), "sfu_lanes", self.sfu_lanes, "a power of two")
        for name in ("prefetch_bytes", "act_bytes"):
            value = getattr(self, name)
            _check(value >= 1024 and value % 64 == 0, name, value, "a multiple of 64, >= 1024")
        for name in ("float_words", "program_words", "param_words"):
            _check(getattr(self, name) >= 1024, name, getattr(self, name), "at least 1024")
        _check(1 <= self.prefill_tile <= 1024, "prefill_tile", self.prefill_tile, "1 to 1024")
        tile, inner = self.prefill_tile, self.attention_tile
        _check(
            _power_of_two(inner) and tile % inner == 0,
            "attention_tile", inner, f"a power of two that divides prefill_tile {tile}",
        )  # fmt: skip
        _check(
            len(self.slrs) in (0, self.cores),
            "slrs", f"a list of {len(self.slrs)}", f"one for each of the {self.cores} cores",
        )  # fmt: skip

    @property
    def cores(self) -> int:
        """Number of cores."""
        return len(self.channels)

    @property
    def channel_bytes(self) -> int:
        """Capacity of one channel in bytes."""
        return self.memory.channel_mib << 20

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the TOML file."""
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """SHA-256 over every field, hex."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def difference(self, other: dict[str, Any]) -> str | None:
        """The first field in which `other` (a `to_dict`) differs, as a sentence, or None."""
        mine, theirs = (_flat(json.loads(json.dumps(d))) for d in (self.to_dict(), other))
        for name in (*mine, *theirs):
            have, want = mine.get(name), theirs.get(name)
            if have != want:
                return f"{name}: the program was made for {want}, the device has {have}"
        return None

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "configuration") -> HwConfig:
        """Build from plain values.

        Raises
        ------
        InputError
            For an unknown, missing, mistyped or impossible field; names the field and the source.
        """
        try:
            top = dict(values)
            memory = _record(MemoryConfig, top.pop("memory", None), "memory")
            listed = top.pop("slrs", ())
            if not isinstance(listed, (list, tuple)):
                raise InputError(f"slrs: {listed!r} is not a list of tables")
            slrs = tuple(_record(Slr, item, "slrs") for item in listed)
            if isinstance(top.get("channels"), (list, tuple)):
                top["channels"] = tuple(top["channels"])
            config: HwConfig = _record(cls, {**top, "memory": memory, "slrs": slrs}, "top level")
            return config
        except InputError as error:
            raise InputError(f"{source}: {error}") from None


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Nested tables under dotted names: {"memory.kind": ...}."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out.update({f"{name}.{inner}": item for inner, item in value.items()})
        else:
            out[name] = value
    return out


def _record(kind: Any, values: Any, where: str) -> Any:
    """`kind(**values)` with each field's name and type checked."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: a table is missing")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"{where}: unknown field {name!r}")
        _check_type(name, value, str(fields[name].type))
    for name, entry in fields.items():
        optional = (
            entry.default is not dataclasses.MISSING
            or entry.default_factory is not dataclasses.MISSING
        )
        if name not in values and not optional:
            raise InputError(f"{where}: field {name!r} is missing")
    floats = {name for name, entry in fields.items() if entry.type == "float"}
    # 200 and 200.0 are one value and must make one digest.
    return kind(**{n: float(v) if n in floats else v for n, v in values.items()})


def _check_type(name: str, value: Any, kind: str) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    good = {
        "int": whole,
        "float": whole or isinstance(value, float),
        "str": isinstance(value, str),
        "tuple[int, ...]": isinstance(value, tuple)
        and all(isinstance(item, int) and not isinstance(item, bool) for item in value),
    }
    if not good.get(kind, True):
        raise InputError(f"{name}: {value!r} is not a {kind}")


def preset_names() -> list[str]:
    """Names of the boards that come with the package, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_config(board: str | Path) -> HwConfig:
    """The configuration of a preset name or of a user's TOML file.

    Raises
    ------
    InputError
        When there is no such board or file, or the file is wrong.
    """
    path = Path(board)
    if path.suffix != ".toml":
        path = PRESETS / f"{board}.toml"
        if not path.is_file():
            raise InputError(
                f"board {str(board)!r} is unknown; use a .toml file or one of "
                + ", ".join(preset_names())
            )
    if not path.is_file():
        raise InputError(f"board file {path} does not exist")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"board file {path} is not readable TOML: {error}") from None
    return HwConfig.from_dict(values, source=str(board))
