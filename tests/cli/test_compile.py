"""`flightllm compile`: what it writes, what it says, and that nothing is half-written."""

import os
from pathlib import Path

import pytest

from flightllm.spec.image import load_program

KEYS = {
    "instruction_bytes", "compile_seconds", "weight_bytes", "average_weight_bits", "digest",
    "max_length",
}  # fmt: skip
QUICK = ("--calibrate", "none")


def test_json_has_the_promised_keys(cli, model: Path, tmp_path: Path) -> None:
    done = cli("compile", model, "-o", tmp_path / "p", *QUICK, "--json")
    assert done.code == 0
    result = done.json
    assert result.keys() >= KEYS
    found = load_program(tmp_path / "p")
    assert result["digest"] == found.digest
    assert result["instruction_bytes"] == found.instruction_bytes
    assert result["max_length"] == found.model.max_length == 64
    assert 4 < result["average_weight_bits"] < 9
    assert result["compile_seconds"] > 0


def test_folder_holds_program_and_tokenizer(program: Path) -> None:
    names = {path.name for path in program.iterdir()}
    assert names == {
        "manifest.json", "program.bin", "image.bin", "tokenizer.json", "tokenizer_config.json",
        "generation_config.json", "config.json",
    }  # fmt: skip
    found = load_program(program)
    assert found.model.eos == (0,) and found.model.bos == 0


def test_same_input_gives_the_same_program(cli, model: Path, program: Path, tmp_path: Path) -> None:
    assert cli("compile", model, "-o", tmp_path / "p", *QUICK).code == 0
    for name in ("manifest.json", "program.bin", "image.bin"):
        assert (tmp_path / "p" / name).read_bytes() == (program / name).read_bytes()


def test_text_output_and_replacing_a_program(cli, model: Path, own_program: Path) -> None:
    done = cli("compile", model, "-o", own_program, "--weights", "w8g32", *QUICK)
    assert done.code == 0
    assert f"{load_program(own_program).digest}" in done.out
    assert os.listdir(own_program.parent) == ["program"]


def test_shape_compiles_without_image(cli, tmp_path: Path) -> None:
    done = cli("compile", "llama2-7b", "--board", "u280", "-o", tmp_path / "p", "--json")
    assert done.code == 0
    result = done.json
    assert result["shape_only"] and result["digest"]
    assert result["instruction_bytes"] <= 65536 and result["max_length"] == 4096
    assert not (tmp_path / "p" / "image.bin").exists()


def test_other_length_schemes_are_sized_and_not_written(cli, tmp_path: Path) -> None:
    sizes = {}
    for lengths in ("adaptive", "bucketed", "unrolled"):
        folder = tmp_path / lengths
        done = cli("compile", "llama2-7b", "--board", "u280", "-o", folder, "--lengths", lengths,
                   "--json")  # fmt: skip
        assert done.code == 0
        sizes[lengths] = done.json["instruction_bytes"]
        assert folder.exists() == (lengths == "adaptive")
    assert sizes["adaptive"] * 1000 < sizes["bucketed"] < sizes["unrolled"]


def test_shorter_length_is_taken(cli, model: Path, tmp_path: Path) -> None:
    done = cli("compile", model, "-o", tmp_path / "p", "--max-length", 40, *QUICK, "--json")
    assert done.json["max_length"] == 40 and done.json["model_max_length"] == 64


def test_a_length_cut_by_memory_is_said(cli, tmp_path: Path) -> None:
    given = ("llama2-7b", "--board", "u50", "--weights", "w7g128")
    done = cli("compile", *given, "-o", tmp_path / "p", "--json")
    assert done.code == 0
    assert done.json["max_length"] < done.json["model_max_length"] == 4096
    assert "do not fit the memory of u50" in done.err


def test_stages_are_dumped(cli, model: Path, tmp_path: Path) -> None:
    cli("compile", model, "-o", tmp_path / "p", "--dump", tmp_path / "d", *QUICK)
    names = {path.name for path in (tmp_path / "d").iterdir()}
    assert {"1-graph.txt", "2-quantise.txt", "2-quantise-report.txt", "3-fuse.txt"} <= names
    assert any(name.startswith("7-emit") for name in names)


def test_folder_is_needed(refused, model: Path) -> None:
    assert "give -o DIR" in refused("compile", model)


def test_foreign_folder_is_left_alone(refused, model: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert "is no program folder" in refused("compile", model, "-o", tmp_path)
    assert os.listdir(tmp_path) == ["precious.txt"]
    assert "is a file" in refused("compile", model, "-o", tmp_path / "precious.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "w9g32"), "9 bits in 'w9g32' is not 2 to 8"),
        (("--weights", "int4"), "'int4' is not a scheme"),
        (("--kv", "5"), "kv: 5 bits is not one of 8, 4, 8/4, 4/8"),
        (("--kv", "x"), "kv: x bits is not one of"),
        (("--sparsity", "3:16"), "'3:16' is not one of"),
        (("--calibrate", "no-such-file"), "there is no file 'no-such-file'"),
        (("--lengths", "all"), "'all' is not one of adaptive, bucketed, unrolled"),
        (("--max-length", "65"), "65 is not 1 to the model's 64"),
        (("--max-length", "0"), "0 is not 1 to the model's 64"),
        (("--board", "u2800"), "board 'u2800' is unknown"),
        (("--board", "gone.toml"), "gone.toml does not exist"),
        (("--bogus", "1"), "no such option"),
    ],
)
def test_wrong_options_are_refused(
    refused, model: Path, tmp_path: Path, options: tuple, message: str
) -> None:
    assert message in refused("compile", model, "-o", tmp_path / "p", *options)
    assert os.listdir(tmp_path) == []
