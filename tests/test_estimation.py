"""Estimates, resources, power, timelines and the calibration table."""

import dataclasses
import json

import numpy as np
import pytest

from flightllm import calibration
from flightllm.cli import main
from flightllm.power import board_power
from flightllm.resources import resource_table
from flightllm.spec.config import load_config
from flightllm.spec.isa import Register
from flightllm.spec.trace import TraceRecord
from flightllm.timeline import timeline

pytest.importorskip("numba")


def _estimate(capsys, *arguments):
    capsys.readouterr()
    assert main(["estimate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_estimate_adds_up(capsys):
    found = _estimate(capsys, "demo", "--context", "40", "--prefill", "20", "--decode", "4")
    rate = found["bytes_per_token"] * found["tokens_per_second"] / found["peak_bytes_per_second"]
    assert found["mbu"] == pytest.approx(rate, rel=1e-3)
    assert found["tokens_per_second"] == pytest.approx(200e6 / found["cycles_per_token"], rel=1e-3)
    assert 0 < found["prefill_mac_utilization"] < 1 and found["decode_ms"] > 0
    assert found["resources"]["dsp"]["used"] > 0 and found["power"] is None


@pytest.fixture(scope="module", params=["tiny", "tiny-2core"])
def sequence(request):
    """An estimator, and what runs of it say: tokens, tokens in the cache -> cycles, counters."""
    from flightllm.estimation import Estimator

    made = Estimator("demo", request.param, weights="w4g32")

    def run(steps, position):
        return made.cycles("decode", {
            Register.POS: position, Register.NTOK: 1, Register.STEPS: steps, Register.LOGITS: 1,
        })  # fmt: skip

    return made, run


def _added(run):
    """Cycles and counters that a third token, which sees 40, adds to a run of two."""
    longer, shorter = run(3, 37), run(2, 37)
    return longer[0] - shorter[0], {name: longer[1][name] - shorter[1][name] for name in longer[1]}


def test_a_token_is_what_it_adds_to_a_run(sequence):
    made, run = sequence
    found = made.decode(40)
    assert found == _added(run) and found[1]["mv.busy"]
    assert found[0] < run(1, 39)[0]  # alone


@pytest.mark.parametrize("planted", [
    lambda begin, first, second: (first, first, second),  # without the matrix asked for ahead
    lambda begin, first, second: (0, 0, first),  # the first of the two
    lambda begin, first, second: (begin, first, second + 1000),  # what halts the run too
])  # fmt: skip
def test_another_piece_of_the_trace_is_seen(sequence, planted, monkeypatch):
    from flightllm import estimation

    made, run = sequence
    right = estimation._second_token
    monkeypatch.setattr(estimation, "_second_token", lambda own: planted(*right(own)))
    assert made.decode(40) != _added(run)


def test_the_first_token_of_all_is_a_run_of_its_own(sequence):
    made, run = sequence
    assert made.decode(1)[0] == run(1, 0)[0]
    assert min(record.start for record in made.trace(1)) >= 0


def test_a_token_s_trace_goes_from_the_token_before_to_its_end(sequence):
    made, _ = sequence
    cycles, counters = made.decode(40)
    records = made.trace(40)
    early = [record for record in records if record.start < 0]
    assert "ld.stream" in {record.name for record in early}  # its first matrix
    assert "mv" not in {record.unit for record in early}
    assert max(record.end for record in records) == cycles
    assert len(records) == sum(n for name, n in counters.items() if name.endswith("instructions"))
    asks = [record for record in records if record.name == "ld.stream"]
    matrices = [record for record in records if record.name == "mv.linear"]
    assert len(asks) == len(matrices)


def test_a_context_beyond_the_model_is_refused(capsys):
    assert main(["estimate", "demo", "--context", "100000"]) == 2
    assert "tokens are not 1 to" in capsys.readouterr().err


def test_narrower_weights_and_shorter_contexts_are_faster(capsys):
    wide = _estimate(capsys, "demo", "--weights", "w8g32", "--context", "200")
    narrow = _estimate(capsys, "demo", "--weights", "w4g32", "--context", "200")
    short = _estimate(capsys, "demo", "--weights", "w4g32", "--context", "20")
    assert wide["tokens_per_second"] < narrow["tokens_per_second"] < short["tokens_per_second"]


def test_block_sparse_attention_saves_prefill_and_nothing_else(capsys):
    shape = ("demo", "--context", "40", "--prefill", "400", "--weights", "w4g32")
    dense = _estimate(capsys, *shape)
    sparse = _estimate(capsys, *shape, "--attention-density", "0.3")
    assert sparse["prefill_ms"] < dense["prefill_ms"]
    assert sparse["cycles_per_token"] == dense["cycles_per_token"]
    assert sparse["bytes_per_token"] == dense["bytes_per_token"]


def test_multiply_accumulates_of_patterns():
    from flightllm.estimation import _kept
    from flightllm.models.patterns import DENSE, Pattern

    causal = np.tri(150, dtype=bool)
    for pattern in (DENSE, Pattern(1, 1), Pattern(0, 2), Pattern(2, 3)):
        for tokens in (1, 32, 33, 150):
            wanted = (pattern.keeps(150) & causal)[:tokens, :tokens].sum()
            assert _kept(pattern, tokens) == wanted


def test_resources_of_dies_add_up():
    table = resource_table(load_config("u280"))
    for entry in table.values():
        assert entry["used"] == sum(die["used"] for die in entry["slrs"])
        assert entry["available"] == sum(die["available"] for die in entry["slrs"])


def test_power_meets_what_was_measured_on_the_card():
    """AccLLM: 33 W on the U280 with 4,497 DSP; FlightLLM: 45 W with 6,345 at 225 MHz."""
    config = dataclasses.replace(load_config("u280"), clock_mhz=225.0)
    for watts, dsps, rate in ((45.0, 6345, 160e9), (33.0, 4497, 360e9)):
        found = board_power(config, {"dsp": {"used": dsps}}, rate)
        assert found["low"] <= watts <= found["high"]


def test_a_timeline_has_a_lane_for_each_unit():
    records = [TraceRecord(1, "mv", 7, "mv.linear", {"rows": 4}, 100, 300)]
    events = timeline(records, 200.0)["traceEvents"]
    (event,) = [event for event in events if event["ph"] == "X"]
    assert (event["pid"], event["ts"], event["dur"]) == (1, 0.5, 1.0)
    lanes = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert lanes[event["tid"]] == "mv" and len(lanes) == 6


@pytest.fixture
def table(monkeypatch):
    """A measured table of one program, true for what is here."""
    config = {**dataclasses.asdict(load_config("tiny")), "memory": "ideal"}
    made = {**calibration.digests(), "programs": [{"error_percent": -1.5, "config": config}]}
    monkeypatch.setattr(calibration, "load_calibration", lambda: made)
    return made


def test_the_model_s_error_is_the_largest_measured_one(table):
    assert calibration.model_error() == 1.5
    table["programs"].append({**table["programs"][0], "error_percent": 1.75})
    assert calibration.model_error() == 1.75


@pytest.mark.parametrize("name", ["rtl", "model"])
def test_a_stale_table_says_nothing(table, name):
    table[name] = "0" * 64
    assert calibration.model_error() is None


def test_parameters_outside_the_measured_range_are_named(table):
    assert calibration.outside(load_config("tiny")) == []
    assert {"beat_bytes", "cores", "dsp_kind", "memory.kind"} <= set(
        calibration.outside(load_config("u280"))
    )
