"""`boards`, `models`, `check`, `compare`, `disasm` and `isa`."""

import json
from pathlib import Path

import numpy as np
import pytest

from flightllm.models import zoo
from flightllm.spec.config import load_config, preset_names
from flightllm.spec.encoding import decode
from flightllm.spec.image import load_program
from flightllm.spec.isa import INSTRUCTIONS


def test_boards_lists_every_preset(cli) -> None:
    found = cli("boards", "--json").json["boards"]
    assert [board["name"] for board in found] == preset_names()
    text = cli("boards").out
    assert all(name in text for name in preset_names())


@pytest.mark.parametrize("name", ["tiny", "u280"])
def test_boards_show(cli, name: str) -> None:
    config = load_config(name)
    assert cli("boards", "show", name, "--json").json["digest"] == config.digest
    assert config.part in cli("boards", "show", name).out


def test_boards_show_needs_a_board(refused) -> None:
    assert "board 'nope' is unknown" in refused("boards", "show", "nope")


def test_models_lists_the_zoo(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "names", lambda: ("llama2-7b", "opt-6.7b"))
    found = {row["name"]: row for row in cli("models", "--json").json["models"]}
    assert found["llama2-7b"]["parameters"] == 6738415616
    assert found["opt-6.7b"]["weights"] is False
    assert "llama2-7b" in cli("models").out


def test_check_of_what_runs(cli, model: Path) -> None:
    done = cli("check", model, "--json")
    assert done.code == 0
    assert done.json["ok"] and done.json["max_length"] == 64
    operators = ("Embedding", "RMSNorm", "Linear", "RoPE", "Attention", "SiLU")
    assert [finding["what"] for finding in done.json["findings"]] == [
        *(f"operator {name}" for name in operators), "model", "weights", "tokenizer", "board tiny",
    ]  # fmt: skip
    assert cli("check", model).code == 0


def test_check_says_why_not_and_what_to_change(cli) -> None:
    done = cli("check", "llama2-7b", "--json")
    assert done.code == 1
    bad = [finding for finding in done.json["findings"] if not finding["ok"]]
    assert len(bad) == 1 and "does not fit" in bad[0]["detail"]
    assert any("--board u280 serves 4,096 tokens" in change for change in done.json["changes"])
    assert cli("check", "llama2-7b").code == 1


def test_check_weighs_sparsity(cli) -> None:
    options = ("check", "llama2-7b", "--board", "u280", "--json", "--sparsity", "8:16")
    finding = cli(*options).json["findings"][-1]
    assert finding["what"] == "sparsity" and finding["ok"]
    assert "1.5" in finding["detail"] or "1.6" in finding["detail"]


def test_check_of_a_tokenizer_of_another_model(cli, own_model: Path) -> None:
    path = own_model / "tokenizer.json"
    rules = json.loads(path.read_text())
    rules["model"]["vocab"]["zebra"] = 5000
    path.write_text(json.dumps(rules))
    done = cli("check", own_model, "--json")
    assert done.code == 1
    assert [f["what"] for f in done.json["findings"] if not f["ok"]] == ["tokenizer"]


def test_compare_finds_equal_runs_equal(cli, program: Path) -> None:
    done = cli("compare", program, "--tokens", 3, "--json")
    assert done.code == 0
    result = done.json
    assert result["equal"] and result["difference"] is None and result["instructions"] > 100
    assert "equal" in cli("compare", program, "--tokens", 1).out


@pytest.mark.parametrize("name", ["misc.act", "misc.quant"])
def test_compare_finds_a_planted_error(
    cli, program: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from flightllm.sim.functional import machine

    handler, calls, spoiled = machine.HANDLERS[name], [], set()

    def spoiling(core, flags, *operands):
        calls.append(name)
        if len(calls) in spoiled:
            core.f.view(operands[0], (1, 1))[0] += np.float32(9)
        handler(core, flags, *operands)

    monkeypatch.setitem(machine.HANDLERS, name, spoiling)
    options = ("compare", program, "--tokens", 3)
    assert cli(*options).code == 0
    spoiled.add(len(calls) // 2 + 4)  # the fourth of the second executor
    calls.clear()
    done = cli(*options, "--json")
    assert done.code == 1
    found = done.json["difference"]
    assert (found["unit"], found["name"], found["field"]) == ("misc", name, "writes")
    calls.clear()
    done = cli(*options)
    assert done.code == 1 and done.out.startswith("different: core 0 misc instruction")


def test_disasm_lists_every_instruction(cli, program: Path) -> None:
    words = load_program(program).cores[0].words
    core = cli("disasm", program, "--json").json["cores"][0]
    assert core["words"] == words.tolist()
    text = cli("disasm", program).out
    count = len(decode(words.tolist()))
    assert len(core["listing"].splitlines()) == count
    assert len(text.splitlines()) == count + 1 + len(core["entries"])
    assert "\nprefill:\n" in text and "\ndecode:\n" in text


def test_isa_describes_every_instruction(cli) -> None:
    text = cli("isa").out
    found = cli("isa", "--json").json["instructions"]
    assert len(found) == len(INSTRUCTIONS)
    for entry in INSTRUCTIONS:
        assert f"#### {entry.name}\n" in text
