"""tools/calibrate.py: the table, the page, and that a wrong timing is noticed."""

import dataclasses
import json

import calibrate
import pytest
from calibrate import CASES, Case, differences, measure, outside_bars, page

from flightllm import calibration
from flightllm.sim.cycle import CycleDevice, PlainMemory
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
    made, records = calibrate.program_of(case), []
    cycles, counters = calibrate._run(calibrate.cycle_device(case, records.append), made, case)

    class Known:
        def __init__(self, note):
            self.note = note

        def load(self, program):
            pass

        def run(self, entry, registers):
            for record in records:
                self.note(record)
            return RunResult(cycles, counters)

        def close(self):
            pass

    monkeypatch.setattr(calibrate, "rtl_device", lambda case, note: Known(note))
    monkeypatch.setattr(calibrate, "design_digest", lambda config: config.name)
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


def test_figures_of_the_hardware_are_kept_while_the_program_is_the_same(rtl):
    case, made = rtl
    row = measure(case, made)
    known = {**row, "rtl": row["rtl"] + 1000}
    assert measure(case, made, known)["rtl"] == row["rtl"] + 1000
    assert measure(case, made, {**known, "program": "another"})["rtl"] == row["rtl"]


def test_figures_are_kept_while_the_hardware_is_generated_alike(rtl, tmp_path, monkeypatch):
    rows = [
        {"case": case.name, "design": design}
        for case, design in zip(CASES, ("tiny", "another"))
    ]
    monkeypatch.setattr(calibrate, "TABLE", tmp_path / "table.json")
    for digest, kept in ((calibration.digests()["rtl"], rows), ("other sources", rows[:1])):
        table = {"rtl": digest, "programs": rows, "pending": []}
        calibrate.TABLE.write_text(json.dumps(table))
        assert list(calibrate._kept().values()) == kept


def test_instructions_that_take_another_time_are_named(monkeypatch):
    case = Case("tiny", "small", 4, "decode", 1, 17)
    monkeypatch.setattr(calibrate, "rtl_device", calibrate.cycle_device)
    assert differences(case) == []
    slow = CycleDevice(case.config(), memory=PlainMemory(150))

    def slower(case, note):
        slow.trace = note
        return slow

    monkeypatch.setattr(calibrate, "rtl_device", slower)
    first = differences(case)[0]
    assert first.startswith("core 0 ld") and "model" in first


def test_an_error_above_its_bar_is_told(rtl):
    row = measure(*rtl)
    assert not outside_bars(row)
    assert outside_bars({**row, "error_percent": -2.1})
    assert outside_bars({**row, "units": {"mv": [100, 106, 6.0]}})


def test_a_comment_leaves_a_digest_and_code_does_not(tmp_path, monkeypatch):
    texts = ('"""A."""\nX = 1\n', '"""B."""\n\nX = 1  # one\n', '"""A."""\nX = 2\n')
    monkeypatch.setattr(calibration, "ROOT", tmp_path)
    digests = []
    for text in texts:
        (tmp_path / "part.py").write_text(text)
        digests.append(calibration._digest(("part.py",)))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.rtl
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["decode 2 at 17, latency 100", "prefill 9 at 16"])
def test_the_model_keeps_its_bars_on_tiny(name):
    case = next(case for case in CASES if case.board == "tiny" and name in case.name)
    assert not outside_bars(measure(case))


def test_the_page_names_the_largest_error(rtl):
    row = {**measure(*rtl), "error_percent": -3.25}
    text = page({"rtl": "a" * 64, "model": "b" * 64, "programs": [row]})
    assert "-3.25 %" in text and "the largest error in total cycles is 3.25 %" in text
