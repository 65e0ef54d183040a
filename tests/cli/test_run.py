"""`flightllm run`: text, JSON, sampling, traces."""

import io
import json
from pathlib import Path

import pytest

from flightllm import compile, load
from flightllm.models.tokenizer import load_tokenizer

PROMPT = "a small model"
KEYS = {
    "token_ids", "text", "seconds_per_token", "cycles_per_token", "build_seconds",
    "prefill_cycles", "executor", "memory_sha256",
}  # fmt: skip


def test_json_has_the_promised_keys(cli, program: Path) -> None:
    done = cli("run", program, "--prompt", PROMPT, "--tokens", 6, "--json")
    assert done.code == 0 and done.err == ""
    result = done.json
    assert result.keys() >= KEYS
    assert len(result["token_ids"]) == 6 and result["stop"] == "tokens"
    assert result["cycles_per_token"] is None and result["prefill_cycles"] is None
    assert result["seconds_per_token"] > 0 and result["executor"] == "functional"
    assert len(result["memory_sha256"]) == 64
    tokenizer = load_tokenizer(program)
    assert result["prompt_ids"] == tokenizer.encode(PROMPT)


def test_text_is_what_json_says(cli, program: Path) -> None:
    arguments = ("run", program, "--prompt", PROMPT, "--tokens", 9)
    assert cli(*arguments).out == cli(*arguments, "--json").json["text"] + "\n"


def test_a_model_runs_without_a_folder_and_gives_the_same(cli, model: Path, program: Path) -> None:
    options = ("--prompt", PROMPT, "--tokens", 5, "--json")
    direct = cli("run", model, "--calibrate", "none", *options).json
    folder = cli("run", program, *options).json
    assert direct["token_ids"] == folder["token_ids"]
    assert direct["memory_sha256"] == folder["memory_sha256"]
    assert direct["build_seconds"] > folder["build_seconds"]


def test_prompt_from_file_and_standard_input(
    cli, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text(PROMPT)
    options = ("run", program, "--tokens", 3, "--json", "--prompt")
    expected = cli(*options, PROMPT).json["token_ids"]
    assert cli(*options, f"@{tmp_path / 'p.txt'}").json["token_ids"] == expected
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    assert cli(*options, "-").json["token_ids"] == expected


def test_sampling_is_repeatable(cli, program: Path) -> None:
    def ids(seed: int) -> list[int]:
        return cli(
            "run", program, "--prompt", PROMPT, "--tokens", 12, "--temperature", 1.5, "--top-p",
            0.9, "--seed", seed, "--json",
        ).json["token_ids"]  # fmt: skip

    assert ids(1) == ids(1) != ids(2)


def test_several_steps_and_any_unit_order_change_no_token(cli, program: Path) -> None:
    options = ("run", program, "--prompt", PROMPT, "--tokens", 12, "--json")
    plain = cli(*options).json["token_ids"]
    assert cli(*options, "--steps", 5).json["token_ids"] == plain
    assert cli(*options, "--on", "functional:7").json["token_ids"] == plain


def test_full_context_is_said(cli, program: Path) -> None:
    done = cli("run", program, "--prompt", PROMPT, "--tokens", 999)
    assert done.code == 0
    assert "the context is full" in done.err


def test_trace_lists_every_instruction(cli, program: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    done = cli("run", program, "--prompt", PROMPT, "--tokens", 2, "--trace", file, "--json")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(records) == sum(done.json["counters"].values())
    assert {"core", "unit", "address", "name", "operands", "writes"} <= records[0].keys()
    assert [path.name for path in tmp_path.iterdir()] == ["trace.jsonl"]


def test_chat_needs_a_template(refused, program: Path) -> None:
    assert "no chat template" in refused("run", program, "--prompt", "hello", "--chat")


def test_chat_uses_the_template(cli, own_program: Path) -> None:
    (own_program / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    )
    done = cli("run", own_program, "--prompt", "hello", "--chat", "--tokens", 1, "--json")
    expected = load_tokenizer(own_program).encode("[user] hello\n", bos=False)
    assert done.json["prompt_ids"] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt", "word " * 99), "maximum length is 64"),
        (("--prompt", "x", "--tokens", "0"), "tokens: 0 is not at least 1"),
        (("--prompt", "x", "--temperature", "-1"), "temperature: -1.0 is not 0"),
        (("--prompt", "x", "--temperature", "1", "--top-p", "0"), "top-p: 0.0"),
        (("--prompt", "x", "--on", "board"), "a board needs its bitstream: --bitstream FILE"),
        (("--prompt", "x", "--on", "verilog"), "executor 'verilog' is not available"),
        (("--prompt", "x", "--device", "sim:functional"), "go with the executor 'board'"),
        (("--prompt", "x", "--on", "board", "--bitstream", "gone.bit"), "no file gone.bit"),
        (("--prompt", "x", "--on", "functional:a"), "'a' is not a seed"),
        (("--prompt", "@gone.txt"), "text file gone.txt cannot be read"),
        (("--prompt", "x", "--board", "tiny-2core"), "compile it for this board"),
        ((), "missing option '--prompt'"),
    ],
)
def test_wrong_options_are_refused(refused, program: Path, options: tuple, message: str) -> None:
    assert message in refused("run", program, *options)


def test_python_calls_give_the_same(cli, model: Path, program: Path) -> None:
    result = cli("run", program, "--prompt", PROMPT, "--tokens", 5, "--json").json
    with load(program) as loaded:
        assert list(loaded.generate(PROMPT, tokens=5).token_ids) == result["token_ids"]
        pieces = "".join(loaded.stream(PROMPT, tokens=5))
        assert pieces == result["text"]
    made = compile(model, calibrate="none")
    tokenizer = load_tokenizer(program)
    with load(made, tokenizer=tokenizer) as loaded:
        ids = tokenizer.encode(PROMPT)
        assert list(loaded.generate(ids, tokens=5).token_ids) == result["token_ids"]


def test_a_simulated_board_gives_the_same(cli, program: Path) -> None:
    options = ("run", program, "--prompt", PROMPT, "--tokens", 3, "--json")
    direct = cli(*options).json
    board = cli(*options, "--on", "board", "--device", "sim:functional").json
    assert board["executor"] == "board:sim:functional"
    for key in ("token_ids", "text", "memory_sha256"):
        assert board[key] == direct[key]
    streamed = cli(*options[:-1], "--on", "board", "--device", "sim:functional")
    assert streamed.out == direct["text"] + "\n"
