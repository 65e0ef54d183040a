"""Program folders: what is saved is loaded, whole or not at all, and every alteration is named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flightllm.spec.config import load_config
from flightllm.spec.errors import InputError, VerifyError
from flightllm.spec.image import (
    CoreCode,
    ModelFacts,
    Program,
    Segment,
    load_program,
    save_program,
)

FACTS = ModelFacts("toy", 40, 32, 1, (2, 3), 2, 16, 4, 2, 4, 16, ((0, 24), (24, 40)))


def toy_program(shape_only: bool = False) -> Program:
    """Two cores of two channels with a few bytes each."""
    rng = np.random.default_rng(0)
    config = load_config("tiny-2core")
    cores, segments, image = [], [], {}
    for core in range(2):
        words = rng.integers(0, 1 << 32, 5 + core, dtype=np.uint32)
        params = rng.integers(0, 1 << 32, 3, dtype=np.uint32)
        cores.append(CoreCode(words, params, {"prefill": 0, "decode": 4}))
        for name, base, size, writable, row in (
            ("weights", 0, 128, False, 0), ("vectors", 128, 64, False, 64),
            ("bias", 192, 0, False, 0), ("kv", 192, 256, True, 0), ("topk", 448, 128, True, 64),
        ):  # fmt: skip
            segments.append(Segment(name, core, base, size, writable, row))
            if not writable and not shape_only:
                data = rng.integers(0, 256, (2, size), dtype=np.uint8)
                image[core, name] = lambda data=data: data
    return Program(config, FACTS, cores, segments, image, {"bits": 4.125, 2: [1, (3, 4)]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "toy"
    save_program(toy_program(), path)
    return path


def refused(folder: Path, *words: str) -> None:
    """Loading fails in one sentence that has these words."""
    with pytest.raises(InputError) as error:
        load_program(folder)
    text = str(error.value)
    assert "\n" not in text and len(text) < 300, text
    assert all(word in text for word in words), text


def contents(program: Program) -> dict[tuple[int, str], NDArray[np.uint8]]:
    return {key: np.array(read()) for key, read in program.image.items()}


def test_round_trip(tmp_path: Path) -> None:
    program, folder = toy_program(), tmp_path / "deep" / "toy"
    digest = save_program(program, folder)
    for verify in (True, False):
        loaded = load_program(folder, verify)
        assert loaded.config == program.config and loaded.model == program.model
        assert loaded.digest == digest and loaded.folder == folder
        assert not loaded.shape_only
        for ours, theirs in zip(program.cores, loaded.cores):
            assert np.array_equal(ours.words, theirs.words)
            assert np.array_equal(ours.params, theirs.params)
            assert ours.entries == theirs.entries
        assert [dataclasses.replace(s, sha256="") for s in loaded.segments] == program.segments
        saved, read = contents(program), contents(loaded)
        assert saved.keys() == read.keys()
        assert all(np.array_equal(saved[key], read[key]) for key in saved)
        segment = loaded.segment(1, "weights")
        assert np.array_equal(loaded.data(segment), saved[1, "weights"])
        assert segment.sha256 == hashlib.sha256(saved[1, "weights"]).hexdigest()
        assert loaded.instruction_bytes == 4 * (5 + 6 + 3 + 3) + 2 * 24
    assert sorted(path.name for path in folder.iterdir()) == [
        "image.bin", "manifest.json", "program.bin",
    ]  # fmt: skip
    with pytest.raises(KeyError, match="core 0 has no segment 'rope'"):
        program.segment(0, "rope")


def test_a_saved_program_saves_again_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    save_program(load_program(folder), again)
    for name in ("image.bin", "manifest.json", "program.bin"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_shape_only_program_has_no_image(tmp_path: Path) -> None:
    save_program(toy_program(shape_only=True), tmp_path / "shape")
    assert not (tmp_path / "shape" / "image.bin").exists()
    assert load_program(tmp_path / "shape").shape_only


def test_extra_files_and_progress(tmp_path: Path) -> None:
    extra, seen = tmp_path / "tokenizer.json", []
    extra.write_text("{}")
    save_program(toy_program(), tmp_path / "toy", [extra], lambda *step: seen.append(step))
    assert (tmp_path / "toy" / "tokenizer.json").read_text() == "{}"
    assert seen[-1] == (768, 768) and [done for done, _ in seen] == sorted(d for d, _ in seen)


# ------------------------------------------------------------------------------ atomicity


def fail() -> NDArray[np.uint8]:
    raise RuntimeError("no data")


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("cause", ["data", "shape", "extra", "json"])
def test_failure_leaves_nothing_behind(tmp_path: Path, existing: bool, cause: str) -> None:
    place = tmp_path / "out"
    place.mkdir()
    if existing:
        save_program(toy_program(), place / "toy")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    program, extra = toy_program(), []
    if cause == "data":
        program.image[1, "weights"] = fail
    elif cause == "shape":
        program.image[1, "weights"] = lambda: np.zeros((2, 64), np.uint8)
    elif cause == "extra":
        extra = [tmp_path / "none.json"]
    else:
        program.report["bad"] = object()
    with pytest.raises((RuntimeError, VerifyError, OSError, TypeError)):
        save_program(program, place / "toy", extra)
    after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert after == before
    assert [path.name for path in place.iterdir()] == (["toy"] if existing else [])


def test_a_program_is_replaced_whole(folder: Path) -> None:
    (folder / "stale.txt").write_text("old")
    save_program(toy_program(shape_only=True), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "program.bin"]


def test_other_folders_and_files_are_not_touched(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    save_program(toy_program(), mine)  # empty: taken
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("42")
    for path in (other, other / "thesis.txt"):
        with pytest.raises(InputError, match="is no program folder; choose another"):
            save_program(toy_program(), path)
    assert (other / "thesis.txt").read_text() == "42"


def test_an_empty_working_directory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save_program(toy_program(), Path("."))
    assert load_program(tmp_path / "here").model == FACTS


# ------------------------------------------------------------------------------ corruption


@pytest.mark.parametrize("segment", ["weights", "vectors"])
@pytest.mark.parametrize("core", [0, 1])
def test_a_flipped_image_byte_names_its_segment(folder: Path, core: int, segment: str) -> None:
    path = folder / "image.bin"
    data = bytearray(path.read_bytes())
    data[core * 384 + (0 if segment == "weights" else 300)] ^= 1
    path.write_bytes(data)
    refused(folder, "image.bin", f"segment {segment!r} of core {core} was altered")
    load_program(folder, verify=False)


@pytest.mark.parametrize("change", [-1, 1, -768])
def test_an_image_of_another_length_is_refused(folder: Path, change: int) -> None:
    path = folder / "image.bin"
    data = path.read_bytes()
    path.write_bytes(data + b"x" if change > 0 else data[:change])
    refused(folder, "image.bin", f"{768 + change} bytes, the manifest says 768")
    with pytest.raises(InputError):
        load_program(folder, verify=False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("image.bin", ["image.bin", "0 bytes"]),
        ("program.bin", ["program.bin", "missing or altered"]),
        ("manifest.json", ["is no program folder", "manifest.json"]),
    ],
)
def test_missing_files(folder: Path, name: str, words: list[str]) -> None:
    (folder / name).unlink()
    refused(folder, *words)


def test_a_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none", "is no program folder")


@pytest.mark.parametrize("at", [0, 17, -1])
def test_a_flipped_instruction_byte(folder: Path, at: int) -> None:
    path = folder / "program.bin"
    data = bytearray(path.read_bytes())
    data[at] ^= 0x80
    path.write_bytes(data)
    refused(folder, "program.bin", "missing or altered")
    path.write_bytes(data[:-4])
    refused(folder, "program.bin", "missing or altered")


def rename(body: dict[str, Any]) -> None:
    body["model"]["name"] = "other"


def clock(body: dict[str, Any]) -> None:
    body["config"]["clock_mhz"] = 999.0


def segment_base(body: dict[str, Any]) -> None:
    body["segments"][0]["base"] += 64


def more(body: dict[str, Any]) -> None:
    body["more"] = 1


def less(body: dict[str, Any]) -> None:
    del body["segments"]


def weights(body: dict[str, Any]) -> None:
    body["shape_only"] = True


@pytest.mark.parametrize("change", [rename, clock, segment_base, more, less, weights])
def test_an_altered_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    refused(folder, "manifest was altered")


def test_another_version_is_named(folder: Path) -> None:
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    body["version"] = 99
    path.write_text(json.dumps(body))
    refused(folder, "version 99", "this toolkit reads 1")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '"x"', "{}", '{"digest": 1}', '{"digest": "", "format": "zip"}',
     '{"digest": "", "format": "flightllm-program"}'],
)  # fmt: skip
def test_foreign_json(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    refused(folder, "manifest")


def test_a_manifest_that_is_not_text(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\xfe\x00")
    refused(folder, "manifest")


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["model"].pop("dim"),
        lambda body: body["segments"][0].update(colour=1),
        lambda body: body.update(cores=3),
        lambda body: body["config"].update(beat_bytes=24),
        lambda body: body.update(config=[]),
    ],
)
def test_a_forged_manifest_with_a_right_digest(
    folder: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    """Even a manifest whose digest was made anew fails in a sentence, not in a traceback."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    del body["digest"]
    change(body)
    body["digest"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(body))
    refused(folder)
