"""The hand-over beside a bitstream: written, read, and refused by field."""

import json

import pytest

from flightllm.spec.config import load_config
from flightllm.spec.errors import InputError
from flightllm.spec.handoff import (
    VLNV,
    Handoff,
    handoff_path,
    load_handoff,
    master_ports,
    save_handoff,
)
from flightllm.spec.registers import MAP_VERSION


@pytest.fixture
def bitstream(tmp_path):
    path = tmp_path / "tiny.bit"
    path.write_bytes(b"bits" * 1000)
    save_handoff(path, load_config("tiny"), ("a", "b"), "a tool 1.0")
    return path


def spoil(bitstream, **changes) -> None:
    path = handoff_path(bitstream)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(bitstream) -> None:
    found = load_handoff(bitstream)
    assert found.config == load_config("tiny")
    assert (found.memories, found.bitstream, found.tool) == (("a", "b"), "tiny.bit", "a tool 1.0")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "other"}, "is not a hand-over"),
        ({"memories": ["a"]}, "memories: 1 names for 2 channels"),
        ({"registers": MAP_VERSION + 1}, f"registers: map {MAP_VERSION + 1}"),
        ({"config_digest": "0" * 64}, "config_digest: 0000000000000000, the fields give another"),
        ({"sha256": "0" * 64}, "sha256: the file tiny.bit is not the one"),
        ({"config": {}}, "memory: a table is missing"),
        ({"memories": 3}, "not a hand-over of a bitstream"),
    ],
)
def test_a_wrong_field_is_named(bitstream, changes: dict, message: str) -> None:
    spoil(bitstream, **changes)
    with pytest.raises(InputError, match=message):
        load_handoff(bitstream)


def test_missing_files_are_named(bitstream, tmp_path) -> None:
    with pytest.raises(InputError, match="there is no file .*gone.bit"):
        load_handoff(tmp_path / "gone.bit")
    handoff_path(bitstream).unlink()
    with pytest.raises(InputError, match="there is no file .*tiny.hardware.json"):
        load_handoff(bitstream)


def test_names_of_ports() -> None:
    assert master_ports(load_config("u280"))[::31] == ["m_axi_00", "m_axi_31"]
    assert VLNV.split(":")[2:] == ["flightllm", f"{MAP_VERSION}.0"]
    with pytest.raises(InputError, match="memories"):
        Handoff(load_config("tiny"), (), "x", "", "")
