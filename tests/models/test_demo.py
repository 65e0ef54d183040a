"""The demo model that ships: its size, and that it beats the 5-grams on topics it has not seen."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import flightllm.models
from flightllm.models.checkpoint import open_checkpoint
from flightllm.models.corpus import TEXT_DIGEST, Corpus, load_corpus
from flightllm.models.model_card import PROMPTS, TEMPERATURE, TrainingFacts, measure
from flightllm.models.reference import FloatModel
from flightllm.models.tokenizer import Tokenizer, load_tokenizer

FOLDER = Path(flightllm.models.__file__).parent / "demo"


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    torch.set_num_threads(1)
    found = load_corpus()
    if found.digest != TEXT_DIGEST:
        pytest.skip(f"this Python's topics have the digest {found.digest}, not {TEXT_DIGEST}")
    return found


@pytest.fixture(scope="module")
def model() -> FloatModel:
    return FloatModel.load(open_checkpoint("demo"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(FOLDER)


def test_folder_fits_four_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000


def test_beats_both_ngrams_and_the_card_says_by_how_much(
    model: FloatModel, tokenizer: Tokenizer, corpus: Corpus
) -> None:
    figures = measure(model, tokenizer, corpus)
    assert figures.model < figures.ngram
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    stated = [float(value) for value in re.findall(r"^\| .* \| (\d\.\d{4}) \|$", card, re.M)]
    found = [figures.model, figures.token_ngram, figures.byte_ngram]
    assert stated == pytest.approx(found, abs=2e-4)


def test_damaged_model_does_not_beat_the_ngrams(
    model: FloatModel, tokenizer: Tokenizer, corpus: Corpus
) -> None:
    damaged = dict(model.tensors)
    damaged["layers.2.down.weight"] = damaged["layers.2.down.weight"].roll(1, dims=0)
    few = replace(corpus, held_out={"global": corpus.held_out["global"]})
    wrong = measure(FloatModel(model.config, damaged), tokenizer, few)
    assert wrong.model > wrong.ngram
    assert measure(model, tokenizer, few).model < wrong.model - 0.1


def test_card_records_text_and_training() -> None:
    facts = TrainingFacts.read(FOLDER)
    assert facts.text_digest == TEXT_DIGEST
    card = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    stated = (
        facts.text_digest,
        f"loss {facts.loss:.3f}",
        f"{facts.validation_bits:.4f}, are within",
    )
    assert all(words in card for words in stated)
    assert all(prompt.split("\n")[0] in card for prompt, _ in PROMPTS)


def test_continues_a_prompt_with_words_of_the_text(
    model: FloatModel, tokenizer: Tokenizer, corpus: Corpus
) -> None:
    prompt, seed = PROMPTS[0]
    ids = tokenizer.encode(prompt)
    more = model.generate(ids, 100, TEMPERATURE, seed=seed, stop=model.config.eos)
    words = re.findall(r"[A-Za-z]+", tokenizer.decode(more))[:-1]
    known = set(re.findall(r"[A-Za-z]+", " ".join(corpus.training.values())))
    assert len(words) > 15
    assert sum(word in known for word in words) > 0.8 * len(words)
