"""tools/calibrate.py: the table, the page, and that a wrong timing is noticed."""

import dataclasses

import calibrate
import pytest
from calibrate import CASES, Case, measure, page

from flightllm.spec import timing
from flightllm.spec.device import RunResult

pytest.importorskip("numba")


def test_cases_cover_what_must_be_shown():
    assert len(CASES) >= 24 and len({case.name for case in CASES}) == len(CASES)
    for field, least in (("board", 3), ("shape", 2), ("bits", 3), ("kept", 2), ("entry", 2),
                         ("latency", 4), ("stalls", 2), ("kv", 2)):  # fmt: skip
        assert len({getattr(case, field) for case in CASES}) >= least


@pytest.fixture
def rtl(monkeypatch):
    """Stands in for the RTL: the cycle model as the table of timing is now."""
    case = Case("tiny", "small", 4, "decode", 1, 17)
    made = calibrate.program_of(case)
    cycles, counters = calibrate._run(calibrate.cycle_device(case), made, case)

    class Known:
        def load(self, program):
            pass

        def run(self, entry, registers):
            return RunResult(cycles, counters)

        def close(self):
            pass

    monkeypatch.setattr(calibrate, "rtl_device", lambda case: Known())
    return case, made


def test_an_exact_model_has_no_error(rtl):
    row = measure(*rtl)
    assert row["error_percent"] == 0 and all(unit[2] == 0 for unit in row["units"].values())


@pytest.mark.parametrize("entry", ["slice", "start", "drain"])
def test_a_wrong_entry_of_the_table_is_noticed(rtl, monkeypatch, entry):
    right = timing.engine_timing

    def wrong(config, core=0):
        made = right(config, core)
        return dataclasses.replace(made, **{entry: getattr(made, entry) + 120})

    monkeypatch.setattr(timing, "engine_timing", wrong)
    row = measure(*rtl)
    assert abs(row["error_percent"]) > 2 and abs(row["units"]["mv"][2]) > 5


def test_the_page_names_the_largest_error(rtl):
    row = {**measure(*rtl), "error_percent": -3.25}
    text = page({"rtl": "a" * 64, "model": "b" * 64, "programs": [row]})
    assert "-3.25 %" in text and "the largest error in total cycles is 3.25 %" in text
