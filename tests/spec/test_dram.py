"""spec.dram: the memory model against published measurements, and its rules."""

import dataclasses

import pytest

from flightllm.spec.config import load_config
from flightllm.spec.dram import (
    MEASURED,
    MEASURED_ON,
    DramChannel,
    dram_timing,
    reproduce,
    streaming,
    throughput,
)


def timing_of(kind):
    """The kind's parameters, at the rate of a whole channel as it was measured."""
    return MEASURED_ON[kind]


@pytest.mark.parametrize("point", MEASURED, ids=lambda point: f"{point.kind}: {point.what}")
def test_published_figures(point):
    error = reproduce(point) / point.value - 1
    assert abs(error) <= (0.05 if point.calibrated else 0.10)


@pytest.mark.parametrize("field, factor", [("row_cycle", 1.5), ("same_group", 3), ("refresh", 3),
                                           ("hit", 1.1)])  # fmt: skip
def test_a_wrong_parameter_is_noticed(field, factor):
    timing = timing_of("hbm2")
    wrong = dataclasses.replace(timing, **{field: factor * getattr(timing, field)})
    errors = [
        abs(reproduce(point, wrong) / point.value - 1) / (0.05 if point.calibrated else 0.10)
        for point in MEASURED
        if point.kind == "hbm2"
    ]
    assert max(errors) > 1


def test_u280_never_exceeds_what_was_measured():
    timing = dram_timing(load_config("u280"))
    for size in (64, 512, 1024, 4096):  # long enough for the last, cut interval not to matter
        assert 32 * throughput(timing, size, size, 1 << 28, (20 << 20) // size) <= 425.0
    assert 32 * streaming(timing) <= 425.0


@pytest.mark.parametrize("efficiency", [0.85, 0.90, 0.92])
def test_efficiency_is_what_a_stream_reaches(efficiency):
    config = load_config("vhk158")
    timing = dram_timing(config, efficiency)
    assert streaming(timing) / timing.bytes_per_ns == pytest.approx(efficiency)
    assert throughput(timing, 1024, 1024, 1 << 28) == pytest.approx(efficiency * 12.8, rel=1e-3)


def test_what_refresh_leaves_of_the_kv260_s_ddr4():
    """The figure of docs/performance.md."""
    timing = dram_timing(load_config("kv260"))
    assert streaming(timing) / timing.bytes_per_ns == pytest.approx(0.9375, abs=5e-4)


def test_the_assumed_efficiency_of_hbm2e_is_90_percent():
    timing = dram_timing(load_config("vhk158"))
    assert streaming(timing) / timing.bytes_per_ns == pytest.approx(0.90, abs=5e-4)


def test_ideal_memory_has_no_timing():
    assert dram_timing(load_config("tiny")) is None


def test_writes_turn_the_bus_round():
    timing = timing_of("hbm2")
    channel = DramChannel(timing)
    end = channel.access(0.0, 0, 512, False)[1]
    begin, end_write = channel.access(0.0, 512, 512, True)
    assert begin == pytest.approx(end + timing.read_to_write)
    assert channel.access(0.0, 1024, 64, False)[0] == pytest.approx(
        end_write + timing.write_to_read
    )


def test_an_access_over_two_rows_counts_both():
    timing = timing_of("hbm2")
    channel = DramChannel(timing)
    begin, end = channel.access(0.0, timing.row_bytes - 64, 128, False)
    assert end - begin >= 128 / timing.bytes_per_ns
    assert channel.rows[0] == channel.rows[1] == 0
