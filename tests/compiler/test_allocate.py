"""compiler.allocate: how far apart heads' V lie, and what that may cost."""

from __future__ import annotations

import pytest

from flightllm.compiler import allocate
from flightllm.compiler.scheme import QuantOptions
from flightllm.compiler.shape_only import shape_only
from flightllm.compiler.tile import tile
from flightllm.models import zoo
from flightllm.spec.config import load_config
from flightllm.spec.dram import dram_timing


def layout(model: str, board: str, length: int | None = None) -> allocate.Layout:
    config, shape = load_config(board), shape_only(zoo.shape(model), QuantOptions(weights="w4g128"))
    parts = tile(shape, config)
    return allocate.allocate(
        shape, parts[0], config, *allocate.fit_length(shape, parts, config, length)
    )


@pytest.mark.parametrize("rows, taken", [(8, 11), (11, 11), (12, 19), (16, 19), (20, 27)])
def test_heads_take_three_rows_more_than_a_multiple_of_the_banks(rows: int, taken: int) -> None:
    config = load_config("vhk158")
    timing = dram_timing(config)
    assert timing is not None and timing.banks == 8
    assert allocate._spread_heads(rows * timing.row_bytes, config) == taken * timing.row_bytes
    within = (rows + 1) * timing.row_bytes - 64  # not a whole number of rows
    assert allocate._spread_heads(within, config) >= within
    assert allocate._spread_heads(within, config) // timing.row_bytes % timing.banks == 3


def test_heads_that_do_not_cover_the_banks_are_packed() -> None:
    config = load_config("vhk158")
    timing = dram_timing(config)
    assert timing is not None
    size = timing.banks * timing.row_bytes - 64
    assert allocate._spread_heads(size, config) == size


def test_heads_of_a_plain_memory_are_packed() -> None:
    assert allocate._spread_heads(1 << 20, load_config("tiny")) == 1 << 20


def test_a_column_of_all_heads_lies_in_all_banks() -> None:
    timing = dram_timing(load_config("vhk158"))
    assert timing is not None
    memory = layout("llama2-7b", "vhk158", 4096).memory
    rows = [head * memory.value_region // timing.row_bytes for head in range(8)]
    assert memory.value_region % timing.row_bytes == 0
    assert sorted(row % timing.banks for row in rows) == list(range(8))
    assert memory.kv_stride % (memory.key_region + memory.value_region) == 0
    kv = memory.segments["kv"]
    assert kv.size == 32 * memory.kv_stride and memory.top > kv.base + kv.size


def test_no_context_is_lost_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory ends, heads are packed."""
    full = layout("llama2-13b", "u280")
    monkeypatch.setattr(allocate, "_spread_heads", lambda size, config: size)
    assert layout("llama2-13b", "u280") == full
    assert full.memory.top <= load_config("u280").channel_bytes
