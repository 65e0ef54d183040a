"""How much of a device the hardware takes: a model of every unit, and Yosys where asked.

DSPs are counted as the generator instantiates them (`dsp_count`): chains, float32 products, and a
few wide integer products. Memories follow their shapes. Look-up tables and
flip-flops are sums over the parts whose sizes `PARTS` states, as Yosys synthesised them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from flightllm.hw.decode.ring import beats_of_slice, ring_beats
from flightllm.hw.engine.size import EngineSize, engine_size
from flightllm.hw.memory.ram import shallow
from flightllm.spec.config import HwConfig
from flightllm.spec.handoff import wants_half_ports
from flightllm.spec.isa import QUEUE_DEPTH, UNITS
from flightllm.spec.parameters import (
    LARGEST_GROUP,
    MatrixParameters,
    exchanged_bytes,
    matrix_parameters,
    row_bytes,
    row_words,
)
from flightllm.spec.timing import sums_at_once

__all__ = ["PARTS", "Resources", "core_resources", "dsp_count", "memory_blocks"]


@dataclass(frozen=True)
class Resources:
    """Counts of one unit, one core or one device; block memories of 18 Kbit count a half."""

    dsp: float = 0
    lut: float = 0
    ff: float = 0
    bram36: float = 0
    uram: float = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, count: float) -> Resources:
        """So many of it."""
        return Resources(*(count * getattr(self, f.name) for f in fields(self)))


PRODUCT_DSPS = {"dsp48e2": 2, "dsp48e1": 3, "dsp58": 2, "inferred": 2}
"""Slices of a float32 significand's 24 x 24 bit product."""
LANE_DSPS = 2
"""Of a lane: a slice for the scale, one for the minimum, which are 11 bits wide."""
VECTORS_DSPS = 1
"""Of a job's vectors, a product of 11 x 11 bits."""
DISPATCHER_DSPS = 3
"""Of sys.mul, the lower 32 bits of 32 x 32."""

# (LUT, FF) of the parts of float32 arithmetic at the latencies that the units use, by
# `yosys synth_xilinx -family xcup -flatten`: its estimate of LUT sites and its shift registers.
PARTS: dict[str, tuple[float, float]] = {
    "add": (256, 140), "add_positive": (205, 135), "mul": (110, 162), "lane_mul": (78, 136),
    "int_to_float": (101, 67), "short_to_float": (56, 45), "half_to_float": (29, 19),
    "to_int8": (54, 20), "to_half": (60, 16), "exp": (1146, 816), "recip": (710, 510),
    "rsqrt": (881, 509),
}  # fmt: skip


PLANNER = (1300, 1500)
"""(LUT, FF) of what a decode unit has at any size: planner, sections, walker, tags."""
SELECT_LUT, SHIFT_LUT = 0.87, 1.15
"""A bit's four to one: of a beat in the ring, of two steps of the shift to a slice's first byte."""
CODE_LUT, NEXT_LUT, LEVEL_LUT, LEVEL_FF = 29, 15, 48, 41
"""Of a lane: codes of two rows, those of a second part; of each part index, picks and levels."""
CELL = (35.6, 25.7)
"""(LUT, FF) of a lane of a cell: its sparse multiplexer and skew."""
CHAIN = {
    "dsp48e2": (15.1, 13.5), "dsp48e1": (15.1, 13.5), "dsp58": (11.3, 14.4),
    "inferred": (19.7, 43.5),
}  # fmt: skip
"""(LUT, FF) of a lane of a cell: what its chain has beside multipliers."""
COUPLE_LUT = 1.1
"""With twins: of a result's bit, which of the two."""
LANE = (102, 140)
"""(LUT, FF) of a float32 lane beside its arithmetic."""
TAG_LANES = 16
"""From so many of the SFU on its rings of tags, 59 bits and more, go to block memory."""
SOURCE_LUT = 0.468
"""A bit's, of each source of the epilogue."""
ENGINE_LUT = (2680, 105, 2)
"""What the channels share: of any size, of a row at a time, of a window's byte and a step of its
rotation."""
BETWEEN_LUT = 0.7
"""A bit's, of a memory of look-up tables: the choice among its parts of 64 words."""
BEHIND_LUT = 0.5
"""A bit's, of each UltraRAM of a column behind the first."""
CHANNEL_LUT, LOAD_STORE = 0.43, (4156, 3174)
"""A bit's of a word that is loaded, of each channel; (LUT, FF) of what has no size."""
WRITER_LUT = 1.7
"""A bit's, of the choice among those who write to F."""
MOST_URAM = 0.85
"""Share of a die's UltraRAM for F, A and weight FIFOs at most; else the FIFOs are block memory."""
CONTROL = (2520, 2030)
"""(LUT, FF) of a core's dispatcher, semaphores, queues and monitors."""
MEETING = (2.5, 510)
"""With several cores: LUT of a bit exchanged, FF, of a core's gathers and barriers."""
REGISTERS_LUT = 1131
"""Of the host's registers, for a core, their number rounded up to a power of two."""
BASE_LUT = ((68, 0), (37, 248))
"""Of a channel's base, and of all: where there are few channels, and where there are many."""
ADDRESS_LUT = 28
"""Of what adds it to an address."""
REGISTERS_FF = (574, 97, 64)
"""Of the registers, of a core behind the first, of a channel's base."""
EXCHANGED = (1, 2.01, 90)
"""Of a bit exchanged between cores: LUT; FF for each core and once more, and those beside bits."""


def _dsps_of_cell(made: MatrixParameters) -> int:
    if made.dsp_kind == "dsp58":  # three products of one row a slice, a cascade for each row
        return 2 * -(-made.k_lanes // 3)
    return made.k_lanes * (2 if made.dsp_kind == "inferred" else 1)  # one product, or two


def _array_dsps(config: HwConfig, core: int) -> int:
    """Chains of all cells, and two lanes a cell."""
    made = matrix_parameters(config)
    return config.channels[core] * made.cells * (_dsps_of_cell(made) + 2 * LANE_DSPS)


def _sfu_dsps(config: HwConfig) -> int:
    """Products of the SFU: a lane's 8 and its scalars' one of 24 x 24 bits, the rest of 24 x 16,
    which are those of a polynomial in the distance from a segment's middle."""
    lanes = config.sfu_lanes
    return (8 * lanes + 1) * PRODUCT_DSPS[config.dsp_kind] + 2 * lanes + 4


def _engine_dsps(config: HwConfig, channels: int) -> int:
    """The epilogue's products, two divisions by the channels, and the vectors of a job."""
    shares = 0 if channels & (channels - 1) == 0 else 2 * 2
    return min(row_words(config), 16) * PRODUCT_DSPS[config.dsp_kind] + shares + VECTORS_DSPS


def dsp_count(config: HwConfig, core: int) -> int:
    """DSPs of a core: exact, `tests/hw/test_resources.py` holds it against the generated design."""
    channels = config.channels[core]
    engine = _engine_dsps(config, channels)
    return _array_dsps(config, core) + engine + _sfu_dsps(config) + DISPATCHER_DSPS


def memory_blocks(width: int, depth: int, urams: bool) -> Resources:
    """What a memory of `depth` words of `width` bits takes: UltraRAM where there is some and it is
    large, block memory, or look-up tables."""
    if urams and depth >= 2048 and width * depth >= 1 << 20:
        beside, behind = -(-width // 72), -(-depth // 4096)
        return Resources(uram=beside * behind, lut=BEHIND_LUT * width * (behind - 1))
    if not shallow(width, depth):
        halves = min(
            -(-width // (wide // 2)) * -(-depth // deep) if wide // 2 else 0
            for wide, deep in ((72, 512), (36, 1024), (18, 2048))
        )
        return Resources(bram36=halves / 2)
    if depth <= 32:  # eight tables hold 14 bits of 32 words, or 7 of 64
        return Resources(lut=-(-width // 14) * 8)
    parts = -(-depth // 64)
    return Resources(lut=-(-width // 7) * 8 * parts + BETWEEN_LUT * width * (parts - 1))


def _part(name: str) -> Resources:
    lut, ff = PARTS[name]
    return Resources(lut=lut, ff=ff)


def _decode(made: MatrixParameters) -> Resources:
    """A decode unit: headers, ring of beats, shift to the slice's first byte, codes, levels."""
    lanes, beat, parts = made.k_lanes, made.beat_bytes, 1 + made.twin
    reach, ring = beats_of_slice(beat, lanes), ring_beats(beat, lanes)
    headers = memory_blocks(8 * beat, 16, False).times(3) + Resources(lut=7 * beat + 40)
    select = 8 * beat * reach * ring / 4
    steps = -(-(beat.bit_length() - 3) // 2)  # two bits of the offset each
    return headers + Resources(
        lut=PLANNER[0] + SELECT_LUT * select + 16 * lanes * SHIFT_LUT * steps
        + lanes * (CODE_LUT + LEVEL_LUT * parts + NEXT_LUT * made.twin),
        ff=PLANNER[1] + 8 * beat * (ring + reach) + lanes * (16 + LEVEL_FF * parts),
    )  # fmt: skip


def _array(config: HwConfig, made: MatrixParameters, size: EngineSize) -> Resources:
    """Cells, lanes and result memories of a channel."""
    batches = size.batches
    lane = (
        _part("lane_mul").times(2) + _part("add").times(2) + _part("int_to_float")
        + _part("short_to_float") + memory_blocks(32, size.accumulators, False)
        + Resources(lut=LANE[0] + (24 + 17) * -(-batches // 64), ff=LANE[1])
    )  # fmt: skip
    chain = CHAIN[config.dsp_kind]
    cell = Resources(lut=CELL[0] + chain[0], ff=CELL[1] + chain[1]).times(made.k_lanes)
    out = min(row_words(config), 16)
    depth = 2 * (16 // out) << (batches - 1).bit_length()
    results = _results(32 * out, depth)
    slices = Resources(lut=75, ff=(1 + made.twin) * 20 * made.k_lanes + 100)
    widen = _part("half_to_float").times(4 * (1 + made.twin))
    couples = Resources(lut=COUPLE_LUT * (32 + 16) * out).times(made.twin)
    own = slices + widen + couples + _results(16 * out, 2 * (16 // out))
    return (cell + results + lane.times(2)).times(made.cells) + own


def _results(width: int, depth: int) -> Resources:
    """Memory whose words are registered when they are read, as block memory has it inside."""
    return memory_blocks(width, depth, False) + Resources(ff=width * shallow(width, depth))


def _weight_fifo(config: HwConfig, core: int) -> Resources:
    """A channel's, in UltraRAM where F and A leave enough of it."""
    beat = config.beat_bytes
    depth = config.prefetch_bytes // beat
    room = config.slrs[core].uram if config.slrs else 0
    fifo = memory_blocks(8 * beat, depth, room > 0)
    taken = _buffers(config, room > 0).uram + config.channels[core] * fifo.uram
    return fifo if taken <= MOST_URAM * room else memory_blocks(8 * beat, depth, False)


def _channel(config: HwConfig, made: MatrixParameters, size: EngineSize, core: int) -> Resources:
    """Decode unit, array, the channel's two masters, and its port."""
    beat = made.beat_bytes
    fifo = _weight_fifo(config, core)
    masters = Resources(lut=490 + 5 * beat, ff=330 + 17 * beat)
    port = Resources(lut=15.3 * beat, ff=27.4 * beat).times(wants_half_ports(config))
    return _decode(made) + _array(config, made, size) + fifo + masters + port


def _engine(config: HwConfig, made: MatrixParameters, channels: int, batches: int) -> Resources:
    """What the channels share: windows, sequencer, epilogue."""
    out = min(row_words(config), 16)
    places = max(1, LARGEST_GROUP // made.window_bytes)
    windows = memory_blocks(8 * made.window_bytes, 2 * places * batches, False)
    epilogue = (_part("mul") + _part("add") + _part("half_to_float")).times(out)
    sources = channels * (made.cells + 0.5)  # a cell's sums, and halves of the second section
    select = Resources(lut=SOURCE_LUT * 32 * out * sources, ff=32 * out * 6)
    rotated = made.window_bytes * (made.window_bytes.bit_length() - 1)
    lut = ENGINE_LUT[0] + ENGINE_LUT[1] * out + ENGINE_LUT[2] * rotated
    fixed = Resources(lut=lut, ff=3900, bram36=0.5)
    return windows.times(made.cells) + epilogue + select + fixed


def _sfu(config: HwConfig) -> Resources:
    lanes, words = config.sfu_lanes, row_words(config)
    lane = (
        _part("mul").times(5) + _part("add").times(2) + _part("exp") + _part("recip")
        + _part("to_int8") + Resources(lut=900, ff=800)
    )  # fmt: skip
    sums = _part("add_positive").times(
        words - 1 + (16 // words).bit_length() + sums_at_once(lanes) - 1
    )
    scalars = _part("mul") + _part("add") + _part("recip") + _part("rsqrt") + _part("to_half")
    lists = Resources(lut=150 * config.top_k, ff=64 * config.top_k)
    tags = Resources(bram36=2 * (lanes >= TAG_LANES))
    return lane.times(lanes) + sums + scalars + lists + tags + Resources(lut=3500, ff=3000)


def _buffers(config: HwConfig, urams: bool) -> Resources:
    lanes, window = row_words(config), row_bytes(config)
    rows = -(-config.float_words // lanes)
    f = memory_blocks(32 * lanes, -(-rows // 2), urams).times(4)  # two readers, two halves each
    words = -(-config.act_bytes // window // 2)
    a = memory_blocks(8 * window, words, urams)
    if not a.uram:  # a strobe's byte has nine bits in block memory
        a = memory_blocks(9 * window, words, False)
    places, bytes_ = (lanes.bit_length() - 1), (window.bit_length() - 1)
    # Four to one a table: of two rows, rotated, cleared beyond the count; writes are rotated.
    select = 32 * lanes * (2 * (places + 2) + places) / 2 + 8 * window * (2 * bytes_ + 1) / 2
    users = 32 * lanes * WRITER_LUT + 16 * lanes + 100
    return f + a.times(2) + Resources(lut=select + users, ff=2 * 34 * lanes + 9 * window)


def _memory(config: HwConfig, channels: int) -> Resources:
    """LD and ST: fixed parts, the lay-out of a beat to store, the choice of a channel's words."""
    beat = config.beat_bytes
    words = min(32 * row_words(config), 8 * beat)
    lut = LOAD_STORE[0] + 32 * beat + CHANNEL_LUT * words * channels
    return Resources(lut=lut, ff=LOAD_STORE[1] + 24 * beat + words)


def _control(config: HwConfig, core: int) -> Resources:
    """What a core has of it; the first one's die has the host's registers and the exchange too."""
    program = memory_blocks(32, config.program_words, False)
    params = memory_blocks(32, config.param_words, False)
    queues = memory_blocks(32, QUEUE_DEPTH * 22, False).times(len(UNITS))
    own = program + params + queues + Resources(lut=CONTROL[0], ff=CONTROL[1])
    cores, channels = config.cores, sum(config.channels)
    bits = 8 * max(4 * row_words(config), exchanged_bytes(config)) if cores > 1 else 0
    if bits:
        own += Resources(lut=MEETING[0] * bits, ff=MEETING[1])
    if core:
        return own
    base = min(each * channels + more for each, more in BASE_LUT) + ADDRESS_LUT * channels
    fixed, behind, each = REGISTERS_FF
    host = Resources(lut=base + (REGISTERS_LUT << (cores - 1).bit_length()),
                     ff=fixed + behind * (cores - 1) + each * channels)  # fmt: skip
    exchange = Resources(lut=EXCHANGED[0] * bits + 53,
                         ff=(cores + 1) * (EXCHANGED[1] * bits + EXCHANGED[2]))  # fmt: skip
    return own + host + exchange.times(cores > 1)


def core_resources(config: HwConfig, core: int) -> Mapping[str, Resources]:
    """A core's units by name; their DSPs add up to `dsp_count`."""
    made, channels = matrix_parameters(config), config.channels[core]
    urams = bool(config.slrs) and config.slrs[core].uram > 0
    size = engine_size(config, core)
    return {
        "channels": _channel(config, made, size, core).times(channels)
        + Resources(dsp=_array_dsps(config, core)),
        "engine": _engine(config, made, channels, size.batches)
        + Resources(dsp=_engine_dsps(config, channels)),
        "sfu": _sfu(config) + Resources(dsp=_sfu_dsps(config)),
        "buffers": _buffers(config, urams),
        "memory": _memory(config, channels),
        "control": _control(config, core) + Resources(dsp=DISPATCHER_DSPS),
    }
