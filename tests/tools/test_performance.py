"""tools/performance.py: the page holds every section, and bars are judged by what is modelled."""

import re
from types import SimpleNamespace

import performance
from performance import BARS, bars, command, table, text_of

SECTIONS = ("bars", "fitting", "efficiencies", "models", "small", "requests", "paper", "memory",
            "resources", "idle", "bytes", "roof", "share", "small_head")  # fmt: skip


def test_the_page_has_every_section():
    text = text_of({name: f"<<{name}>>" for name in SECTIONS})
    assert all(f"<<{name}>>" in text for name in SECTIONS)
    assert not re.search(r"\{[a-z_]+\}", text)


def test_a_table_has_a_rule_below_its_head():
    assert table(["a", "b"], [[1, 2]]) == "| a | b |\n|---|---|\n| 1 | 2 |\n"


def test_a_missed_bar_says_by_how_much():
    found = SimpleNamespace(tokens_per_second=100.0, mbu=0.9, prefill_mac_utilization=0.45)
    text = bars(lambda model, board, options: found)
    assert text.count("yes") == sum(getattr(found, bar.value) >= bar.least for bar in BARS)
    assert "no, 20.0 % less" in text and "no, 50.0 % less" in text


def test_commands_are_what_a_shell_takes():
    assert command("demo", "tiny", {"head_bits": 8}) == (
        "`flightllm estimate demo --board tiny --head-bits 8`"
    )


def test_the_page_in_the_repository_came_from_this_template():
    text = performance.PAGE.read_text(encoding="utf-8")
    heads = re.findall(r"^## .*$", performance.TEMPLATE.read_text(encoding="utf-8"), re.M)
    assert re.findall(r"^## .*$", text, re.M) == heads
