"""Named models: the published parameter counts follow from their shapes."""

import pytest

from flightllm.models import zoo
from flightllm.models.checkpoint import open_checkpoint
from flightllm.spec.errors import InputError

PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3.1-8b": 8_030_261_248,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "tinyllama-1.1b": 1_100_048_384,
    # OPT's two unused position rows are not counted here: + 2 dim.
    "opt-125m": 125_239_296 - 2 * 768,
    "opt-1.3b": 1_315_758_080 - 2 * 2048,
    "opt-6.7b": 6_658_473_984 - 2 * 4096,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    config = zoo.shape(name)
    assert config.parameters == PUBLISHED[name]
    assert config.name == name


@pytest.mark.parametrize("name", zoo.names()[1:])
def test_shapes_open_without_weights(name: str) -> None:
    checkpoint = open_checkpoint(name)
    assert checkpoint.shape_only and checkpoint.source == name and checkpoint.folder is None
    assert not checkpoint.has("embed") and not checkpoint.has("head.weight")
    with pytest.raises(InputError, match=f"{name} is a shape without weights"):
        checkpoint.tensor("embed")


def test_lengths_and_windows() -> None:
    assert zoo.shape("mistral-7b").window == 4096
    assert zoo.shape("llama2-7b").max_length == 4096
    assert zoo.shape("opt-6.7b").max_length == 2048


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="llama9: no model of that name"):
        zoo.shape("llama9")
    with pytest.raises(InputError, match="llama9: there is no such folder or file"):
        open_checkpoint("llama9")


def test_a_missing_demo_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # noqa: ANN001
    monkeypatch.setattr(zoo, "_DEMO", tmp_path)
    with pytest.raises(InputError, match="demo: the model's files are missing"):
        open_checkpoint("demo")
