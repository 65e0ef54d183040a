"""Trains the demo model and writes its card: `python -m flightllm.models.train --help`.

The text is what CPython 3.11 says about itself (`flightllm.models.corpus`), the tokeniser and the
model are made from its training topics alone. A run can be interrupted at any time; the same
command goes on where it stopped.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from flightllm.models.config import ModelConfig, RopeConfig
from flightllm.models.corpus import TEXT_DIGEST, Corpus, load_corpus
from flightllm.models.hf_writer import save_llama
from flightllm.models.lessons import Lessons
from flightllm.models.model_card import TrainingFacts, bits_per_character, write_card
from flightllm.models.reference import FloatModel
from flightllm.models.training import Recipe, Training
from flightllm.models.vocabulary import (
    END,
    VOCABULARY,
    encode_documents,
    save_tokenizer,
    train_tokenizer,
)
from flightllm.spec.errors import FlightError, InputError

__all__ = ["demo_config", "main", "train"]

CHECKPOINT = "checkpoint.pt"
MODEL = "model"


def demo_config(vocabulary: int = VOCABULARY) -> ModelConfig:
    """The demo model's shape: 1.77 million parameters, 3.5 MB in float16."""
    return ModelConfig(
        family="llama",
        vocab=vocabulary,
        dim=192,
        layers=4,
        heads=6,
        kv_heads=2,
        head_dim=32,
        ffn_dim=512,
        max_length=512,
        rope=RopeConfig(theta=10000.0),
        tied=True,
        bos=0,
        eos=(0,),
        name="demo",
    )


def train(
    out: Path,
    recipe: Recipe,
    corpus: Corpus,
    every: int = 50,
    config: ModelConfig | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Train a model, or go on training it, and export the weights to keep after each check.

    Parameters
    ----------
    out : Path
        Folder for the checkpoint and the exported model; made if it is not there.
    recipe : Recipe
    corpus : Corpus
        Its held-out topics are not looked at.
    every : int
        Steps between two checks on the validation topics.
    config : ModelConfig, optional
        The demo model's shape when left out.
    report : callable
        Is given a line of text at each check.

    Returns
    -------
    Path
        Folder of the exported model.

    Raises
    ------
    InputError
        `out` holds a run with another recipe.
    """
    config = demo_config() if config is None else config
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(corpus.training.values(), config.vocab)
    documents = encode_documents(tokenizer, corpus.training)
    end = int(tokenizer.encode(END, add_special_tokens=False).ids[0])
    run = Training(config, recipe, Lessons(documents, config.vocab, end, recipe.seed))
    checkpoint = out / CHECKPOINT
    if checkpoint.exists():
        run.restore(checkpoint)
        report(f"goes on after step {run.step} of {recipe.steps}")
    validation = encode_documents(tokenizer, corpus.validation)
    characters = sum(map(len, corpus.validation.values()))

    def measure(tensors: dict[str, Tensor]) -> float:
        return bits_per_character(FloatModel(config, tensors), validation, end, characters)

    while run.step < recipe.steps:
        run.advance()
        if run.step % every and run.step < recipe.steps:
            continue
        bits = run.judge(measure)
        report(
            f"step {run.step}/{recipe.steps}  {run.seconds:.0f} s  training loss {run.loss:.3f}"
            f"  validation {bits:.4f} bits per character (lowest {run.lowest_bits:.4f})"
        )
        run.save(checkpoint)
        _export(out / MODEL, run, corpus, tokenizer)
    return out / MODEL


def _export(folder: Path, run: Training, corpus: Corpus, tokenizer: Tokenizer) -> None:
    """Write the weights to keep as a Hugging Face folder with what the card must tell."""
    facts = TrainingFacts(
        recipe=asdict(run.recipe),
        steps=run.step,
        kept_step=run.kept_step,
        loss=run.loss,
        validation_bits=run.kept_bits,
        lowest_validation_bits=run.lowest_bits,
        seconds=round(run.seconds),
        training_tokens=run.lessons.tokens,
        text_digest=corpus.digest,
        python=platform.python_version(),
        torch=torch.__version__,
    )
    folder.mkdir(exist_ok=True)
    # Each file is replaced whole, so that an interruption leaves a folder that can be read.
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        fresh = Path(name)
        save_llama(fresh, run.config, run.kept)
        save_tokenizer(tokenizer, fresh, run.config.max_length)
        facts.write(fresh)
        for path in fresh.iterdir():
            os.replace(path, folder / path.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flightllm.models.train", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, help="folder of the run; the model is DIR/model")
    parser.add_argument("--card", type=Path, help="write README.md into this model's folder")
    parser.add_argument("--every", type=int, default=50, help="steps between checks")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument(
        "--any-text", action="store_true", help="accept another text than the recorded digest's"
    )
    for field in fields(Recipe):
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=type(field.default),
            default=field.default,
            help=f"default {field.default}",
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; user errors are 2, an interruption is 130."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    try:
        if (options.out is None) == (options.card is None):
            raise InputError("give either --out DIR to train or --card DIR to describe a model")
        corpus = load_corpus()
        if corpus.digest != TEXT_DIGEST and not options.any_text:
            raise InputError(
                f"this Python's topics have the digest {corpus.digest}, not {TEXT_DIGEST}, CPython"
                " 3.11.7's; use that Python or give --any-text"
            )
        if options.card is not None:
            write_card(options.card, corpus)
            return 0
        folder = train(options.out, recipe, corpus, options.every)
        write_card(folder, corpus)
    except FlightError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on after the last check", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
