"""What stands around the core on the ULX3S: serial line, host bridge, SDRAM controller."""

from __future__ import annotations

import random

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.sim import Simulator
from small_board import small_board

from flightllm.hw.boards.ulx3s.bridge import HostBridge
from flightllm.hw.boards.ulx3s.sdram import SdramController, SdramTiming
from flightllm.hw.boards.ulx3s.shell import MemoryShare
from flightllm.hw.boards.ulx3s.uart import Receiver, Transmitter
from flightllm.sim.board.functional import FunctionalBus
from flightllm.sim.board.serial import SimulatedLine
from flightllm.spec.registers import address
from flightllm.spec.serial import Command, request

DIVISOR = 6


def simulate(dut, *benches) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    for bench in benches:
        simulator.add_testbench(bench, background=getattr(bench, "background", False))
    simulator.run()


# ------------------------------------------------------------------------- the line


@pytest.mark.parametrize("drift", [0, -1, 1])
def test_bytes_go_through_a_line(drift: int) -> None:
    """Also when sender and receiver differ by 2.5 %."""
    m = Module()
    m.submodules.send = send = Transmitter(40 + drift)
    m.submodules.receive = receive = Receiver(40)
    m.d.comb += receive.line.eq(send.line)
    data = [0x00, 0xFF, 0x55, 0xA7, 0x01, 0x80] if not drift else [0x55, 0xA7]
    got = []

    async def sender(ctx) -> None:
        for byte in data:
            ctx.set(send.i.payload, byte)
            ctx.set(send.i.valid, 1)
            await ctx.tick().until(send.i.ready)
            ctx.set(send.i.valid, 0)
            await ctx.tick().repeat(2)

    async def collect(ctx) -> None:
        ctx.set(receive.o.ready, 1)
        for _ in range(42 * 10 * (len(data) + 1)):
            await ctx.tick()
            if ctx.get(receive.o.valid):
                got.append(ctx.get(receive.o.payload))

    simulate(m, sender, collect)
    assert got == data


def test_a_glitch_and_a_break_are_no_bytes() -> None:
    dut = Receiver(16)
    seen = []

    async def bench(ctx) -> None:
        ctx.set(dut.o.ready, 1)
        for level, cycles in ((0, 3), (1, 200), (0, 400), (1, 200)):
            ctx.set(dut.line, level)
            for _ in range(cycles):
                await ctx.tick()
                if ctx.get(dut.o.valid):
                    seen.append(ctx.get(dut.o.payload))

    simulate(dut, bench)
    assert seen == []


# ------------------------------------------------------------------------- the bridge


def control_slave(dut, bus, pauses: random.Random):
    """AXI4-Lite, over the registers of a simulated board."""

    async def serve(ctx) -> None:
        axi = dut.control
        while True:
            await ctx.tick()
            if ctx.get(axi.arvalid):
                value = bus.read(ctx.get(axi.araddr))
                await ctx.tick().repeat(pauses.randrange(3) + 1)
                ctx.set(axi.arready, 1)
                await ctx.tick()
                ctx.set(axi.arready, 0)
                ctx.set(axi.rdata, value)
                ctx.set(axi.rvalid, 1)
                await ctx.tick().until(axi.rready)
                ctx.set(axi.rvalid, 0)
            if ctx.get(axi.awvalid) and ctx.get(axi.wvalid):
                bus.write(ctx.get(axi.awaddr), ctx.get(axi.wdata))
                for ready in (axi.awready, axi.wready):
                    ctx.set(ready, 1)
                    await ctx.tick()
                    ctx.set(ready, 0)
                ctx.set(axi.bvalid, 1)
                await ctx.tick().until(axi.bready)
                ctx.set(axi.bvalid, 0)

    serve.background = True
    return serve


def memory_slave(dut, bus, pauses: random.Random):
    """AXI4, one beat a burst, over a simulated board's memory."""

    async def serve(ctx) -> None:
        axi = dut.memory
        while True:
            await ctx.tick()
            if ctx.get(axi.arvalid):
                assert ctx.get(axi.arlen) == 0 and ctx.get(axi.arsize) == 4
                data = bus.fetch(ctx.get(axi.araddr), 16)
                ctx.set(axi.arready, 1)
                await ctx.tick()
                ctx.set(axi.arready, 0)
                await ctx.tick().repeat(pauses.randrange(4) + 1)
                ctx.set(axi.rdata, int.from_bytes(data, "little"))
                ctx.set(axi.rvalid, 1)
                await ctx.tick().until(axi.rready)
                ctx.set(axi.rvalid, 0)
            if ctx.get(axi.awvalid) and ctx.get(axi.wvalid):
                place, data = ctx.get(axi.awaddr), ctx.get(axi.wdata)
                assert ctx.get(axi.wlast) and ctx.get(axi.wstrb) == 0xFFFF
                bus.store(place, data.to_bytes(16, "little"))
                for ready in (axi.wready, axi.awready):
                    ctx.set(ready, 1)
                    await ctx.tick()
                    ctx.set(ready, 0)
                ctx.set(axi.bvalid, 1)
                await ctx.tick().until(axi.bready)
                ctx.set(axi.bvalid, 0)

    serve.background = True
    return serve


def bridge_replies(requests: list[bytes], bus) -> list[bytes]:
    """What the bridge answers to each request; none that has no answer in time."""
    dut = HostBridge(byte_cycles=4)
    replies = []

    async def talk(ctx) -> None:
        for data, size in requests:
            for byte in data:
                ctx.set(dut.i.payload, byte)
                ctx.set(dut.i.valid, 1)
                await ctx.tick().until(dut.i.ready)
            ctx.set(dut.i.valid, 0)
            out, waited = [], 0
            ctx.set(dut.o.ready, 1)
            while len(out) < size and waited < 600:
                if ctx.get(dut.o.valid):
                    out.append(ctx.get(dut.o.payload))
                    waited = 0
                waited += 1
                await ctx.tick()
            ctx.set(dut.o.ready, 0)
            replies.append(bytes(out))

    pauses = random.Random(1)
    simulate(dut, talk, control_slave(dut, bus, pauses), memory_slave(dut, bus, pauses))
    return replies


def test_the_bridge_answers_as_its_model_does() -> None:
    """Byte for byte what the line in Python answers, which the runtime's tests use."""
    rng, board = random.Random(2), small_board()
    asked = [request(Command.REGISTER_READ, address("ID"))]
    for _ in range(4):
        value, place = rng.getrandbits(32), 16 * rng.randrange(64)
        beats = rng.randrange(1, 4)
        asked += [
            request(Command.REGISTER_WRITE, address("POS"), value),
            request(Command.REGISTER_READ, address("POS")),
            request(Command.MEMORY_WRITE, place, beats - 1) + rng.randbytes(16 * beats),
            request(Command.MEMORY_READ, place, beats - 1),
        ]
    model = SimulatedLine(FunctionalBus(board))
    expected = []
    for data in asked:
        model.write(data)
        expected.append(model.read(1 << 16))
    sizes = [(data, len(reply)) for data, reply in zip(asked, expected)]
    assert bridge_replies(sizes, FunctionalBus(board)) == expected


def test_the_bridge_forgets_half_a_request() -> None:
    bus = FunctionalBus(small_board())
    whole = request(Command.REGISTER_READ, address("ID"))
    got = bridge_replies([(whole[:2], 1), (b"\x00", 1), (whole, 5)], bus)
    assert got[:2] == [b"", b""]
    assert got[2][:4] == b"MLLF"


# ------------------------------------------------------------------------- SDRAM


class Chip:
    """An SDRAM of ISSI's kind in Python; raises for a command that its data sheet forbids."""

    COMMANDS = {0b111: "nop", 0b011: "active", 0b101: "read", 0b100: "write", 0b010: "precharge",
                0b001: "refresh", 0b000: "mode"}  # fmt: skip

    def __init__(self, timing: SdramTiming) -> None:
        self.words: dict[tuple[int, int, int], int] = {}
        self.open: dict[int, int] = {}
        self.timing, self.cycle, self.free = timing, 0, 0
        self.refreshed, self.mode, self.refreshes = 0, None, 0
        self.out: dict[int, int] = {}
        self.burst: tuple[int, int, int] | None = None

    def step(self, pins: dict[str, int]) -> int:
        """One clock edge; the word on the data pins after it."""
        self.cycle += 1
        name = self.COMMANDS[pins["ras_n"] << 2 | pins["cas_n"] << 1 | pins["we_n"]]
        if name != "nop":
            assert self.cycle >= self.free, f"{name} too early"
            getattr(self, name)(pins)
        if self.burst is not None:
            self._write(pins)
        return self.out.pop(self.cycle, 0xDEAD)

    def active(self, pins) -> None:
        assert self.mode == 0x23 and pins["ba"] not in self.open
        self.open[pins["ba"]] = pins["a"]
        self.free = self.cycle + self.timing.row

    def read(self, pins) -> None:
        row = self.open[pins["ba"]]
        for word in range(8):
            column = pins["a"] & ~7 | (pins["a"] + word) & 7
            value = self.words.get((pins["ba"], row, column), 0)
            self.out[self.cycle + 2 + word] = value
        self.free = self.cycle + 8

    def write(self, pins) -> None:
        assert pins["a"] % 8 == 0
        self.burst = (pins["ba"], pins["a"], 8)
        self.free = self.cycle + 8

    def _write(self, pins) -> None:
        assert pins["dq_oe"]
        bank, column, left = self.burst
        place = (bank, self.open[bank], column)
        old, mask = self.words.get(place, 0), pins["dqm"]
        keep = (0xFF if mask & 1 else 0) | (0xFF00 if mask & 2 else 0)
        self.words[place] = old & keep | pins["dq_o"] & ~keep & 0xFFFF
        self.burst = (bank, column + 1, left - 1) if left > 1 else None

    def precharge(self, pins) -> None:
        assert pins["a"] >> 10 & 1
        self.open.clear()
        self.free = self.cycle + self.timing.precharge

    def refresh(self, pins) -> None:
        assert not self.open
        self.refreshes += 1
        self.free = self.cycle + self.timing.refresh

    def mode(self, pins) -> None:
        raise AssertionError("replaced below")


def _mode(self, pins) -> None:
    assert self.refreshes >= 2 and not self.open
    self.mode = pins["a"]
    self.free = self.cycle + 2


TIMING = SdramTiming(row=1, precharge=1, refresh=4, recover=2, interval=120, start=40)


def chip_at(controller, chip: Chip):
    """The chip at a controller's pins."""

    async def pins(ctx) -> None:
        names = ("ras_n", "cas_n", "we_n", "ba", "a", "dqm", "dq_o", "dq_oe")
        while True:
            values = {name: ctx.get(getattr(controller.pins, name)) for name in names}
            ctx.set(controller.pins.dq_i, chip.step(values))
            await ctx.tick()

    pins.background = True
    return pins


def master(axi, transfers, pauses: random.Random):
    """Runs (write, address, [beats]) transfers; reads are compared with what was written."""
    held: dict[int, int] = {}

    async def write(ctx, place: int, beats) -> None:
        for number, (data, strobes) in enumerate(beats):
            await ctx.tick().repeat(pauses.randrange(3) + 1)
            ctx.set(axi.wdata, data)
            ctx.set(axi.wstrb, strobes)
            ctx.set(axi.wlast, number == len(beats) - 1)
            ctx.set(axi.wvalid, 1)
            await ctx.tick().until(axi.wready)
            ctx.set(axi.wvalid, 0)
            for byte in range(16):
                if strobes >> byte & 1:
                    held[place + 16 * number + byte] = data >> 8 * byte & 0xFF
        ctx.set(axi.bready, 1)
        await ctx.tick().until(axi.bvalid)
        ctx.set(axi.bready, 0)

    async def read(ctx, place: int, beats) -> None:
        for number in range(len(beats)):
            await ctx.tick().repeat(pauses.randrange(3) + 1)
            ctx.set(axi.rready, 1)
            data, last = await ctx.tick().sample(axi.rdata, axi.rlast).until(axi.rvalid)
            ctx.set(axi.rready, 0)
            want = [held.get(place + 16 * number + byte, 0) for byte in range(16)]
            assert list(data.to_bytes(16, "little")) == want, (hex(place), number)
            assert last == (number == len(beats) - 1)

    async def run(ctx) -> None:
        for writes, place, beats in transfers:
            await ctx.tick().repeat(pauses.randrange(5) + 1)
            prefix = "aw" if writes else "ar"
            ctx.set(getattr(axi, prefix + "addr"), place)
            ctx.set(getattr(axi, prefix + "len"), len(beats) - 1)
            ctx.set(getattr(axi, prefix + "valid"), 1)
            await ctx.tick().until(getattr(axi, prefix + "ready"))
            ctx.set(getattr(axi, prefix + "valid"), 0)
            await (write if writes else read)(ctx, place, beats)

    return run


@pytest.fixture(autouse=True)
def mode_command(monkeypatch) -> None:
    """The chip's command of that name, which its state also has."""
    monkeypatch.setattr(Chip, "COMMANDS", {**Chip.COMMANDS, 0b000: "set_mode"})
    monkeypatch.setattr(Chip, "set_mode", _mode, raising=False)


def sdram(transfers, seed: int = 1) -> Chip:
    """Run transfers against the controller and the chip."""
    dut, chip = SdramController(TIMING), Chip(TIMING)
    simulate(dut, master(dut.axi, transfers, random.Random(seed)), chip_at(dut, chip))
    return chip


def some_transfers(rng: random.Random, places: list[int], count: int) -> list:
    """Writes, each read back at once, and all of them read again at the end."""
    transfers = []
    for _ in range(count):
        place = 256 * rng.choice(places)
        beats = [(rng.getrandbits(128), rng.choice([0xFFFF, 0x00F0, rng.getrandbits(16)]))
                 for _ in range(rng.choice([1, 2, 16]))]  # fmt: skip
        transfers += [(True, place, beats), (False, place, beats)]
    return transfers + [(False, place, beats) for _, place, beats in transfers[::2]]


def test_sdram_keeps_what_is_written() -> None:
    transfers = some_transfers(random.Random(5), [0, 1, 3, 4, 77, 4096, 131071], 12)
    chip = sdram(transfers)
    assert len(chip.words) > 64
    assert chip.refreshes > 8 + chip.cycle // (2 * TIMING.interval)


def test_two_users_share_the_memory() -> None:
    """Each in places of its own, both at once: each reads what it wrote."""
    m, rng = Module(), random.Random(3)
    m.submodules.share = share = MemoryShare()
    m.submodules.memory = memory = SdramController(TIMING)
    wiring.connect(m, share.port, memory.axi)
    users = [
        master(axi, some_transfers(rng, places, 8), random.Random(seed))
        for seed, (axi, places) in enumerate(((share.core, [0, 2, 9]), (share.host, [1, 3, 11])))
    ]
    simulate(m, *users, chip_at(memory, Chip(TIMING)))


def test_timing_of_the_chip() -> None:
    at50 = SdramTiming.at(50)
    assert (at50.row, at50.precharge, at50.refresh) == (1, 1, 3)
    assert at50.start == 10_000
    assert at50.interval < 390
