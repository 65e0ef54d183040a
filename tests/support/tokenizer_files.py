"""Writes small tokenizers of the `tokenizers` package, with the files of a folder around them."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

__all__ = ["SPECIAL", "TEXT", "write_tokenizer"]

TEXT = "Once upon a time there was a café — ein Mädchen, 日本語, 😀 and more. " * 3
SPECIAL = ["<s>", "</s>", "<|end|>"]


def write_tokenizer(
    folder: Path,
    template: bool = False,
    rules: dict[str, object] | None = None,
    generation: dict[str, object] | None = None,
    config: dict[str, object] | None = None,
) -> Path:
    """A byte-level tokenizer; `template` makes it put <s> in front of a text."""
    folder.mkdir(exist_ok=True)
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, show_progress=False, special_tokens=SPECIAL
    )
    engine.train_from_iterator([TEXT], trainer)
    engine.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    if template:
        single = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        engine.post_processor = single
    engine.save(str(folder / "tokenizer.json"))
    files = {"tokenizer_config": rules, "generation_config": generation, "config": config}
    for name, data in files.items():
        if data is not None:
            (folder / f"{name}.json").write_text(json.dumps(data))
    return folder
