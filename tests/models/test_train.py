"""The training command: a small run end to end, its resumption, its card and its refusals."""

from pathlib import Path

import pytest
import torch

from flightllm.models import train as command
from flightllm.models.checkpoint import open_checkpoint
from flightllm.models.config import ModelConfig, RopeConfig
from flightllm.models.corpus import Corpus
from flightllm.models.model_card import TrainingFacts, write_card
from flightllm.models.tokenizer import load_tokenizer
from flightllm.models.training import Recipe
from flightllm.spec.errors import InputError

CONFIG = ModelConfig(
    family="llama", vocab=280, dim=32, layers=1, heads=2, kv_heads=1, head_dim=16, ffn_dim=32,
    max_length=64, rope=RopeConfig(), tied=True, bos=0, eos=(0,), name="small",
)  # fmt: skip
RECIPE = Recipe(steps=4, tokens=128, length=32, finish=2, warmup=2)
TEXT = "The value of x is {} and the value of y is {}.\n"


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    torch.set_num_threads(1)
    topics = {f"topic{i}": "".join(TEXT.format(i, j) for j in range(9)) for i in range(12)}
    held, valid = {"topic0": topics.pop("topic0")}, {"topic1": topics.pop("topic1")}
    return Corpus(topics, valid, held, "digest")


def test_run_exports_a_folder_that_opens_and_resumes(corpus: Corpus, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = command.train(tmp_path, RECIPE, corpus, 2, CONFIG, lines.append)
    assert [line.split()[1] for line in lines] == ["2/4", "4/4"]
    assert open_checkpoint(str(folder)).config.vocab == 280
    tokenizer = load_tokenizer(folder)
    assert tokenizer.bos == 0 and tokenizer.eos == (0,)
    text = "A – “new”\n  text"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text)[0] == 0
    again = command.train(tmp_path, RECIPE, corpus, 2, CONFIG, lines.append)
    assert lines[-1] == "goes on after step 4 of 4" and again == folder


def test_card_states_what_it_measured(corpus: Corpus, tmp_path: Path) -> None:
    folder = command.train(tmp_path, RECIPE, corpus, 4, CONFIG, lambda line: None)
    write_card(folder, corpus)
    card = (folder / "README.md").read_text()
    facts = TrainingFacts.read(folder)
    for expected in (
        "`digest`",
        f"{facts.validation_bits:.4f}",
        "--steps 4 --tokens 128",
        "`topic0`",
    ):
        assert expected in card
    write_card(folder, corpus)
    assert (folder / "README.md").read_text() == card


def test_card_needs_a_folder_of_a_run(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.json"):
        write_card(tmp_path, corpus)
    (tmp_path / "training.json").write_text('{"steps": 1}')
    with pytest.raises(InputError, match="must hold exactly"):
        write_card(tmp_path, corpus)


def test_command_refuses_another_text_and_unclear_orders(
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "load_corpus", lambda: corpus)
    assert command.main(["--out", str(tmp_path / "run")]) == 2
    assert "have the digest digest, not" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert command.main([]) == 2
    assert "either --out DIR to train or --card DIR" in capsys.readouterr().err


def test_demo_shape_fits_four_megabytes() -> None:
    assert 2 * command.demo_config().parameters < 3.9e6
