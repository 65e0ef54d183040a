"""The host's view of the accelerator: its AXI4-Lite registers, as one table.

RTL decoder, board runtime and manual (docs/registers.md) derive from it. The first 4 KiB are the
device's, then each core has 4 KiB. All registers are 32 bits wide at addresses that are multiples
of 4; an address without a register reads 0 and ignores writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from flightllm.spec.isa import UNITS, Register

__all__ = [
    "ADDRESS_BITS", "CORE_REGISTERS", "CORE_WINDOW", "DEVICE_REGISTERS", "ERRORS", "Access",
    "BitField", "ErrorCode", "HostRegister", "IDENTIFICATION", "MAP_VERSION", "address", "manual",
]  # fmt: skip

IDENTIFICATION = 0x464C4C4D
"""What ID reads: "FLLM"."""
MAP_VERSION = 1
"""Goes up whenever a register moves or changes its meaning."""
CORE_WINDOW = 0x1000
"""Bytes of the device's registers, and of each core's behind them."""
CORES = 8
ADDRESS_BITS = 16
CHANNELS = 64
"""Most cores, address bits that hold them, most channels of a core (limits of HwConfig)."""


class Access(Enum):
    """How a register may be used."""

    READ = "read"
    WRITE = "read and write"
    PULSE = "write; bits that are 1 act once, reads 0"
    CLEAR = "read; bits written as 1 are cleared"


class ErrorCode(IntEnum):
    """Why a core stopped, in the field `code` of ERROR."""

    NONE = 0
    INSTRUCTION = 1
    FORMAT = 2
    PROGRAM = 3
    LOOP = 4
    BUFFER = 5
    MEMORY = 6
    READ = 7
    WRITE = 8
    WATCHDOG = 9
    ABORTED = 10
    TOKENS = 11
    MEETING = 12


ERRORS = {
    ErrorCode.NONE: "nothing is wrong",
    ErrorCode.INSTRUCTION: "a word is no instruction",
    ErrorCode.FORMAT: "a matrix format word is none, or not one that the unit takes",
    ErrorCode.PROGRAM: "the program or parameter address lies outside its memory",
    ErrorCode.LOOP: "loops nest too deep, or an end has no loop",
    ErrorCode.BUFFER: "an address lies outside the A or F buffer",
    ErrorCode.MEMORY: "an address lies outside a channel",
    ErrorCode.READ: "a memory channel answered a read with an error",
    ErrorCode.WRITE: "a memory channel answered a write with an error",
    ErrorCode.WATCHDOG: "nothing moved for WATCHDOG cycles; see WAITS for what each unit waits for",
    ErrorCode.ABORTED: "the host wrote abort",
    ErrorCode.TOKENS: "a unit owes another more than 255 tokens",
    ErrorCode.MEETING: "core 0 is at a gather and this core at a barrier, or the other way round",
}
"""What each code means."""


@dataclass(frozen=True)
class BitField:
    """Bits [low + width - 1 : low] of a register."""

    name: str
    low: int
    width: int
    doc: str

    @property
    def mask(self) -> int:
        """Its bits in the register."""
        return ((1 << self.width) - 1) << self.low

    def of(self, value: int) -> int:
        """Its value in a register's value."""
        return value >> self.low & ((1 << self.width) - 1)


@dataclass(frozen=True)
class HostRegister:
    """One register, or `count` of them `stride` bytes apart.

    Parameters
    ----------
    offset : bytes from the device's or the core's window. fields : from bit 0 up, or none for a
        plain number. doc : what it holds, with units.
    """

    name: str
    offset: int
    access: Access
    doc: str
    fields: tuple[BitField, ...] = ()
    count: int = 1
    stride: int = 4

    def field(self, name: str) -> BitField:
        """The field called `name`; KeyError when there is none."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(f"{self.name} has no field {name!r}")


def _bits(*entries: tuple[str, int, str]) -> tuple[BitField, ...]:
    """Fields (name, width, doc) one above the other; a name "-" leaves bits out."""
    out, low = [], 0
    for name, width, doc in entries:
        if name != "-":
            out.append(BitField(name, low, width, doc))
        low += width
    return tuple(out)


_READ, _WRITE, _PULSE, _CLEAR = Access.READ, Access.WRITE, Access.PULSE, Access.CLEAR
_EVENTS = (
    ("done", 1, "every core halted"),
    ("error", 1, "a core stopped with an error"),
    ("aborted", 1, "an abort is complete: no transfer is outstanding"),
)
_UNIT_BITS = ", ".join(f"{unit.value} {unit.name}" for unit in UNITS)

DEVICE_REGISTERS: tuple[HostRegister, ...] = (
    HostRegister("ID", 0x000, _READ, f"{IDENTIFICATION:#010x}, \"FLLM\" in ASCII"),
    HostRegister("VERSION", 0x004, _READ, f"version of this map, {MAP_VERSION}"),
    HostRegister("SHAPE", 0x008, _READ, "what the device consists of", _bits(
        ("cores", 8, "cores"),
        ("units", 8, "units of each core"),
        ("top_k", 16, "pairs in a row of the topk segment, at most"),
    )),
    HostRegister("CONTROL", 0x010, _PULSE, "commands to all cores", _bits(
        ("start", 1, "run from each core's ENTRY; ignored while busy"),
        ("abort", 1, "finish outstanding transfers, then stop every core"),
        ("reset", 1, "abort, then clear semaphores, queues, FIFOs and errors"),
    )),
    HostRegister("STATUS", 0x014, _READ, "state of the device", _bits(
        ("busy", 1, "a run, abort or reset is under way"), *_EVENTS,
        ("-", 4, ""),
        ("core", 8, "the core that stopped first, when `error` is set"),
    )),
    HostRegister("INTERRUPT_ENABLE", 0x018, _WRITE, "events that raise the interrupt",
                 _bits(*_EVENTS)),
    HostRegister("INTERRUPT_STATUS", 0x01C, _CLEAR, "events that happened", _bits(*_EVENTS)),
    HostRegister("CONFIG_DIGEST", 0x020, _READ,
                 "SHA-256 of the hardware configuration; word 0 holds its first 8 hex digits",
                 count=8),
    *(
        HostRegister(
            register.name, 0x040 + 4 * place, _WRITE,
            f"register r{register.value} of every core at the next start",
        )
        for place, register in enumerate(
            (Register.POS, Register.NTOK, Register.STEPS, Register.LOGITS)
        )
    ),
    HostRegister("WATCHDOG", 0x050, _WRITE,
                 "cycles without any progress after which a run ends with an error; 0 never"),
    HostRegister("CYCLES_LOW", 0x058, _READ, "core cycles of the run, or of the last; low word"),
    HostRegister("CYCLES_HIGH", 0x05C, _READ, "high word, taken when the low word is read"),
)  # fmt: skip

CORE_REGISTERS: tuple[HostRegister, ...] = (
    HostRegister("ENTRY", 0x000, _WRITE, "word address at which the next run begins"),
    HostRegister("CORE_STATUS", 0x004, _READ, "state of the core", _bits(
        ("units", 6, f"units that execute something ({_UNIT_BITS})"),
        ("-", 2, ""),
        ("halted", 1, "the program ended"),
        ("shared", 1, "it waits for other cores, at a gather or barrier"),
    )),
    HostRegister("ERROR", 0x008, _READ, "why the core stopped", _bits(
        ("code", 8, "see the error codes"),
        ("unit", 4, "the unit that met it, or 15 for the dispatcher"),
        ("-", 4, ""),
        ("channel", 8, "the memory channel, for errors of memory"),
    )),
    HostRegister("ERROR_ADDRESS", 0x00C, _READ, "word address of the instruction that met it"),
    HostRegister("WAITS", 0x020, _READ, "what each unit's next instruction waits for, by unit",
                 _bits(
        ("tokens", 6, f"units that owe it a token ({_UNIT_BITS})"),
        ("-", 2, ""),
        ("fifo", 1, "the weight FIFO is empty (MM, MV) or full (LD)"),
        ("read", 1, "data of a memory read"),
        ("write", 1, "the answer to a memory write"),
        ("cores", 1, "other cores"),
        ("idle", 1, "nothing: its queue is empty"),
    ), count=len(UNITS)),
    HostRegister("COUNT_BUSY", 0x040, _READ,
                 "cycles in which an instruction of each unit ran, from its start to its end",
                 count=len(UNITS), stride=16),
    HostRegister("COUNT_WAIT", 0x044, _READ,
                 "cycles in which each unit had an instruction but waited: token, FIFO or memory",
                 count=len(UNITS), stride=16),
    HostRegister("COUNT_INSTRUCTIONS", 0x048, _READ, "instructions that each unit executed",
                 count=len(UNITS), stride=16),
    HostRegister("COUNT_BEATS", 0x04C, _READ,
                 "beats of all channels: read (LD), written (ST), taken from the FIFOs (MM, MV)",
                 count=len(UNITS), stride=16),
    HostRegister("MEMORY_ADDRESS", 0x200, _WRITE, "where MEMORY_DATA reads and writes", _bits(
        ("word", 31, "word address"),
        ("params", 1, "parameter memory, else program memory"),
    )),
    HostRegister("MEMORY_DATA", 0x204, _WRITE,
                 "the word at MEMORY_ADDRESS, only while idle; each access moves the address on"),
    HostRegister("CHANNEL_BASE_LOW", 0x400, _WRITE,
                 "address of the channel's memory on the system bus, low word", count=CHANNELS,
                 stride=8),
    HostRegister("CHANNEL_BASE_HIGH", 0x404, _WRITE, "high word", count=CHANNELS, stride=8),
)  # fmt: skip
"""Counters are cleared at the start of a run and stop at their largest value."""

_DEVICE = {register.name: register for register in DEVICE_REGISTERS}
_CORE = {register.name: register for register in CORE_REGISTERS}


def address(name: str, index: int = 0, core: int = 0) -> int:
    """Byte address of a register.

    Parameters
    ----------
    index : which of several. core : for a core's registers.

    Raises
    ------
    KeyError
        For a register, an index or a core that there is not.
    """
    register = _DEVICE.get(name) or _CORE[name]
    if not 0 <= index < register.count or not 0 <= core < CORES:
        raise KeyError(f"there is no {name}[{index}] of core {core}")
    window = CORE_WINDOW * (core + 1) if name in _CORE else 0
    return window + register.offset + index * register.stride


def _words(registers: Iterable[HostRegister]) -> Iterator[tuple[int, str]]:
    for register in registers:
        for index in range(register.count):
            yield register.offset + index * register.stride, register.name


def _verify() -> None:
    assert CORE_WINDOW * (CORES + 1) <= 1 << ADDRESS_BITS
    assert not _DEVICE.keys() & _CORE.keys()
    for registers in (DEVICE_REGISTERS, CORE_REGISTERS):
        places = [place for place, _ in _words(registers)]
        assert len(set(places)) == len(places), "two registers share an address"
        assert all(place % 4 == 0 and place < CORE_WINDOW for place in places)
        for register in registers:
            assert sum(field.mask for field in register.fields) < 1 << 32, register.name


_verify()


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in lines)


def _section(registers: Iterable[HostRegister]) -> str:
    rows = []
    for register in registers:
        place = f"`{register.offset:#05x}`"
        if register.count > 1:
            place += f" + {register.stride}·i, i < {register.count}"
        rows.append([place, register.name, register.access.value, register.doc])
    return _table(["offset", "register", "access", "meaning"], rows)


def _fields(registers: Iterable[HostRegister]) -> str:
    rows = []
    for register in registers:
        for field in register.fields:
            high = field.low + field.width - 1
            bits = f"[{high}:{field.low}]" if field.width > 1 else f"[{high}]"
            rows.append([register.name, bits, field.name, field.doc])
    return _table(["register", "bits", "field", "meaning"], rows)


_INTRODUCTION = f"""\
# Host registers

How a host starts, watches and stops the accelerator, over AXI4-Lite. Generated from
`spec/registers.py` by `make generate`.

All registers are 32 bits wide. The device's are at offset 0, those of core n at
{CORE_WINDOW:#x}·(n + 1); {ADDRESS_BITS} address bits hold {CORES} cores. An address without a
register, or inside one, reads 0 and ignores writes; no access gets an error response, which some
hosts end a process for.

## A run

1. Once: compare CONFIG_DIGEST with the program's manifest; set CHANNEL_BASE of every channel; write
   each core's instructions and parameters through MEMORY_ADDRESS and MEMORY_DATA.
2. Write the token ids to memory, each core's ENTRY, then POS, NTOK, STEPS, LOGITS, then `start`.
3. Wait for the interrupt, or read STATUS until `busy` is 0. With `error`, ERROR, ERROR_ADDRESS and
   WAITS of the core say what and where.
4. Read results from memory, counters and CYCLES from here.

`abort` ends a run at any time and leaves no transfer open on any bus; `reset` also clears all
state, after which a run may start."""


def manual() -> str:
    """docs/registers.md."""
    errors = [[code.value, code.name, ERRORS[code]] for code in ErrorCode]
    parts = [
        _INTRODUCTION,
        "## Device", _section(DEVICE_REGISTERS), _fields(DEVICE_REGISTERS),
        "## Core", _section(CORE_REGISTERS), _fields(CORE_REGISTERS),
        "Counters are cleared at the start of a run and stop at their largest value.",
        "## Error codes", _table(["code", "name", "meaning"], errors),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"
