"""The table of KV bits: its rows, and that K's bits are what each is measured with."""

import accuracy
import kv_bits
import pytest
import torch
from random_checkpoint import random_checkpoint

from flightllm.compiler import smooth
from flightllm.compiler.calibrate import Calibration
from flightllm.models.checkpoint import Checkpoint

torch.set_num_threads(1)


def test_table(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint("llama")

    def text(made: Checkpoint, subject: accuracy.Subject) -> Calibration:
        ids = torch.randint(96, (3, 30), generator=torch.Generator().manual_seed(0))
        return Calibration(ids, torch.ones_like(ids, dtype=torch.bool), "test")

    monkeypatch.setattr(smooth, "STEPS", 5)
    monkeypatch.setattr(kv_bits, "_text", text)
    monkeypatch.setattr(kv_bits, "open_checkpoint", lambda name: checkpoint)
    subject = accuracy.Subject("M", "m", "text", "continuous", "a text")
    monkeypatch.setattr(kv_bits, "subjects", lambda: [subject])
    told = list[str]()
    assert kv_bits.main(told.append) == 0
    lines = told[0].splitlines()
    assert lines[0].startswith("M, float: ") and len(lines) == 8
    rows = [line.split(" | ") for line in lines[4:]]
    assert [row[0] + row[1] for row in rows] == ["| 88", "| 84", "| 48", "| 44"]
    assert len({row[2] for row in rows}) == 4  # each of K and V has an effect of its own
