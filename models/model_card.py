"""The demo model's card: every figure in it is measured or sampled while it is written."""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from flightllm.models.checkpoint import open_checkpoint
from flightllm.models.config import ModelConfig
from flightllm.models.corpus import RUN, Corpus
from flightllm.models.ngram import NgramModel
from flightllm.models.reference import FloatModel
from flightllm.models.tokenizer import Tokenizer, load_tokenizer
from flightllm.spec.errors import InputError

__all__ = [
    "PROMPTS",
    "Figures",
    "TrainingFacts",
    "bits_per_character",
    "measure",
    "write_card",
]

FACTS = "training.json"
TEMPERATURE = 0.8
TOKENS = 160
SEPARATOR = "\n\n---\n\n"

PROMPTS = (
    ('The "while" statement\n*********************\n\nThe "while" statement is used', 1),
    ("str.strip([chars])\n\n   Return a copy of the string", 2),
    ("If the target is an attribute reference, the", 3),
    ("Changed in version 3.", 4),
)
"""Prompts of the card with the seed each is continued with."""


@dataclass(frozen=True)
class TrainingFacts:
    """What the training run knows and nobody can measure afterwards.

    Attributes
    ----------
    recipe : dict
        `Recipe` of the run.
    steps, kept_step : int
        Steps taken, and the step whose weights these are.
    loss : float
        Cross-entropy of the last batch of text, nats a token.
    validation_bits, lowest_validation_bits : float
        Bits per character on the validation topics at `kept_step`, and the lowest of any step.
    seconds : int
        Time in optimiser steps.
    training_tokens : int
    text_digest, python, torch : str
    """

    recipe: Mapping[str, Any]
    steps: int
    kept_step: int
    loss: float
    validation_bits: float
    lowest_validation_bits: float
    seconds: int
    training_tokens: int
    text_digest: str
    python: str
    torch: str

    def write(self, folder: Path) -> None:
        """Write the facts beside the model."""
        (folder / FACTS).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "TrainingFacts":
        """Read them again.

        Raises
        ------
        InputError
            The folder holds no such file, or one with other entries.
        """
        path = folder / FACTS
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: {error}") from error
        names = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or set(content) != names:
            raise InputError(f"{path}: must hold exactly {', '.join(sorted(names))}")
        return cls(**content)


@dataclass(frozen=True)
class Figures:
    """Bits per character on the held-out topics: the model, and 5-grams of tokens and of bytes."""

    model: float
    token_ngram: float
    byte_ngram: float

    @property
    def ngram(self) -> float:
        """The stronger of the two baselines."""
        return min(self.token_ngram, self.byte_ngram)


@torch.no_grad()
def bits_per_character(
    model: FloatModel, documents: Sequence[Sequence[int]], end: int, characters: int
) -> float:
    """Bits that a model needs for documents, each with its closing `end`, per character.

    Every token but those of a document's first window is predicted from at least half of the
    longest context.

    Parameters
    ----------
    model : FloatModel
    documents : sequence of lists of int
        Without special tokens.
    end : int
        Id of the token that begins and ends a document.
    characters : int
        Of all documents together.
    """
    nats, longest = 0.0, model.config.max_length
    for document in documents:
        ids = torch.tensor([end, *document, end])
        done, count = 0, len(ids) - 1
        while done < count:
            begin = max(0, done - longest // 2)
            stop = min(count, begin + longest)
            logits = model.forward(ids[None, begin:stop])[0, done - begin :]
            nats += float(functional.cross_entropy(logits, ids[done + 1 : stop + 1]) * len(logits))
            done = stop
    return nats / math.log(2) / characters


def measure(model: FloatModel, tokenizer: Tokenizer, corpus: Corpus, order: int = 5) -> Figures:
    """Measure a model and two n-gram models of the same training topics on the held-out topics."""
    end = model.config.eos[0]
    training, held_out = (
        [tokenizer.encode(text, bos=False) for text in texts.values()]
        for texts in (corpus.training, corpus.held_out)
    )
    characters = sum(map(len, corpus.held_out.values()))
    tokens = NgramModel(training, model.config.vocab, end, order)
    octets = NgramModel([list(t.encode()) for t in corpus.training.values()], 257, 256, order)
    return Figures(
        bits_per_character(model, held_out, end, characters),
        sum(map(tokens.bits, held_out)) / characters,
        sum(octets.bits(list(t.encode())) for t in corpus.held_out.values()) / characters,
    )


def write_card(folder: Path, corpus: Corpus) -> None:
    """Measure the model in `folder` and write its README.md.

    Raises
    ------
    InputError
        The folder is not one that training made.
    """
    facts = TrainingFacts.read(folder)
    model, tokenizer = FloatModel.load(open_checkpoint(str(folder))), load_tokenizer(folder)
    figures = measure(model, tokenizer, corpus)
    samples = [_sample(model, tokenizer, prompt, seed) for prompt, seed in PROMPTS]
    (folder / "README.md").write_text(_card(model, facts, corpus, figures, samples))


def _sample(model: FloatModel, tokenizer: Tokenizer, prompt: str, seed: int) -> str:
    """A prompt, indented, and how the model goes on; what it wrote follows a mark."""
    ids = tokenizer.encode(prompt)
    more = model.generate(ids, TOKENS, TEMPERATURE, seed=seed, stop=model.config.eos)
    text = f"{prompt}▶{tokenizer.decode([i for i in more if i not in model.config.eos])}"
    return "\n".join(f"    {line}".rstrip() for line in text.split("\n"))


def _wrap(text: str) -> str:
    """Paragraphs of prose, filled to 100 columns."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    fill = textwrap.TextWrapper(100, break_long_words=False, break_on_hyphens=False).fill
    return "\n\n".join(fill(paragraph) for paragraph in paragraphs)


def _command(recipe: Mapping[str, Any]) -> str:
    """The command that trains with a recipe, indented, over several lines."""
    words = [f"--{name.replace('_', '-')} {value}" for name, value in recipe.items()]
    lines = textwrap.wrap("  ".join(words).replace(" ", "\0").replace("\0\0", " "), 88)
    command = " \\\n        ".join(["python -m flightllm.models.train --out DIR", *lines])
    return "    " + command.replace("\0", " ")


def _card(
    model: FloatModel,
    facts: TrainingFacts,
    corpus: Corpus,
    figures: Figures,
    samples: Sequence[str],
) -> str:
    """The text of README.md."""
    parts = {
        "about": _about(model.config),
        "figures": _figures(figures, corpus),
        "training": _training(facts, corpus),
        "command": _command(facts.recipe),
        "introduction": _wrap(
            f"Temperature {TEMPERATURE}, seeds {', '.join(str(seed) for _, seed in PROMPTS)}, at"
            f" most {TOKENS} tokens; the model goes on after ▶."
        ),
        "samples": SEPARATOR.join(samples),
        "licence": _wrap(
            """The weights are published under Apache-2.0. The text they are trained on is part of
            CPython, (c) Python Software Foundation, under the PSF licence; it is not part of this
            package."""
        ),
    }
    return _TEMPLATE.format(**parts)


_TEMPLATE = """---
license: apache-2.0
language: en
tags: [text-generation, llama, from-scratch]
---
# The demo model

{about}

## Figures

{figures}

## Training

{command}

{training}

## Samples

{introduction}

{samples}

## Licence

{licence}
"""


def _about(config: ModelConfig) -> str:
    return _wrap(
        f"""A LLaMA of {config.parameters / 1e6:.2f} million parameters ({config.layers} layers,
        width {config.dim}, {config.heads} query and {config.kv_heads} key/value heads of
        {config.head_dim}, MLP {config.ffn_dim}, vocabulary {config.vocab}, context
        {config.max_length}, tied embeddings, float16), trained from nothing on what CPython 3.11
        says about itself: the text of `pydoc_data.topics`. It continues text in the manner of the
        Python language reference. It exists so that every command of flightllm can be tried
        without a download; it knows nothing, and what it says about Python is often wrong.

        Written by `python -m flightllm.models.train --card DIR`: every figure and sample below is
        measured or drawn by that command, except those of the training run, which `training.json`
        records."""
    )


def _figures(figures: Figures, corpus: Corpus) -> str:
    characters = sum(map(len, corpus.held_out.values()))
    before = f"""Bits per character on {characters:,} characters of topics held out by name, each
        topic's end included; lower is better."""
    after = f"""Held out: {_names(corpus.held_out)}. Neither the tokeniser nor the model nor the
        choice of the step that was exported has seen them. The topics of that documentation
        overlap, so a paragraph is given to one topic only, first to the held-out ones, and training
        paragraphs that share a run of {RUN} characters with them are left out. The recipe was found
        by trial; the figures of the trials on these topics were looked at, too."""
    return f"""{_wrap(before)}

| | bits per character |
|---|---|
| this model | {figures.model:.4f} |
| 5-gram of the same tokens, interpolated modified Kneser-Ney | {figures.token_ngram:.4f} |
| 5-gram of bytes, interpolated modified Kneser-Ney | {figures.byte_ngram:.4f} |

{_wrap(after)}"""


def _training(facts: TrainingFacts, corpus: Corpus) -> str:
    return _wrap(
        f"""Text: SHA-256 `{facts.text_digest}` over name, NUL, text, NUL of all topics in order of
        their names (CPython {facts.python}'s; the command refuses another text).
        {facts.training_tokens:,} training tokens, {facts.steps:,} steps of
        {facts.recipe["tokens"]:,} tokens, {facts.seconds / 60:.0f} minutes on one CPU thread,
        torch {facts.torch}. Final training loss {facts.loss:.3f} nats a token (last batch,
        with dropout). Exported: the running average of the weights after step
        {facts.kept_step:,}, the last whose bits per character on the validation topics
        ({_names(corpus.validation)}), {facts.validation_bits:.4f}, are within
        {facts.recipe["tolerance"]:.0%} of the lowest, {facts.lowest_validation_bits:.4f}: the later
        weights write more fluently. The same command resumes an interrupted run;
        the same seed on the same machine gives the same weights. The recipe and its reasons are in
        the docstrings of `flightllm.models.training` and `flightllm.models.lessons`."""
    )


def _names(texts: Mapping[str, str]) -> str:
    return ", ".join(f"`{name}`" for name in texts)
