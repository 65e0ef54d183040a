"""Schemes and options: what is accepted, and the sentence for what is not."""

from pathlib import Path
from typing import Any

import pytest

from flightllm.compiler.scheme import QuantOptions, Scheme, group_for, parse_scheme
from flightllm.spec.errors import InputError


@pytest.mark.parametrize(
    ("text", "bits", "group"),
    [("w4g128", 4, 128), ("w8g32", 8, 32), ("W3.5g128", 3.5, 128), (" w2g64 ", 2, 64)],
)
def test_schemes(text: str, bits: float, group: int) -> None:
    scheme = parse_scheme(text)
    assert scheme == Scheme(bits, group)
    assert str(scheme) == text.strip().lower()
    assert scheme.mixed == (bits != int(bits))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4bit", "is not a scheme"),
        ("w4", "is not a scheme"),
        ("w4g128x", "is not a scheme"),
        ("w9g32", "9 bits"),
        ("w1.5g32", "1.5 bits"),
        ("w4g48", "group 48"),
    ],
)
def test_bad_schemes(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_scheme(text)


@pytest.mark.parametrize(
    ("columns", "group", "expected"),
    [(4096, 128, 128), (64, 128, 64), (100, 128, 64), (20, 128, 32), (172, 32, 32), (127, 64, 64)],
)
def test_group_fits_the_layer(columns: int, group: int, expected: int) -> None:
    assert group_for(columns, group) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "w4"}, "weights"),
        ({"kv": 5}, "kv: 5"),
        ({"kv": "8/8"}, "kv: 8/8 bits is not one of 8, 4, 8/4, 4/8"),
        ({"head_bits": 9}, "head bits: 9"),
        ({"sparsity": "3:16"}, "3:16"),
        ({"calibrate": "no/such/file"}, "no/such/file"),
        ({"max_length": 0}, "max length: 0"),
        ({"attention_density": 0}, "attention density: 0 is not over 0 to 1"),
        ({"attention_density": 1.5}, "attention density: 1.5 is not over 0 to 1"),
        ({"attention_density": 0.5, "calibrate": "none"}, "patterns come from calibration text"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        QuantOptions(**options)


def test_defaults(tmp_path: Path) -> None:
    options = QuantOptions()
    assert options.scheme() == Scheme(4, 128)
    assert options.scheme(quantised_checkpoint=True) is None
    assert QuantOptions(weights="as-is").scheme() is None
    assert QuantOptions(weights="w8g32").scheme(quantised_checkpoint=True) == Scheme(8, 32)
    assert QuantOptions(sparsity="4:16").kept == 4 and options.kept == 16
    text = tmp_path / "text"
    text.write_text("hello")
    assert QuantOptions(calibrate=str(text)).calibrate == str(text)


def test_length() -> None:
    assert QuantOptions().length(512) == 512
    assert QuantOptions(max_length=100).length(512) == 100
    with pytest.raises(InputError, match="600 tokens exceed the model's context of 512"):
        QuantOptions(max_length=600).length(512)
