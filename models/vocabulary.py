"""The demo model's tokeniser: byte-level BPE with one special token, trained on training topics."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

__all__ = ["END", "VOCABULARY", "encode_documents", "save_tokenizer", "train_tokenizer"]

END = "<|endoftext|>"
"""The one special token, id 0: begins a document and ends it."""

VOCABULARY = 1024
"""Entries of the shipped tokeniser: `END`, 256 bytes and 767 merges."""


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Train a byte-level BPE tokeniser; the same texts always give the same one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Encoding a prompt puts END before it, as in training.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def encode_documents(tokenizer: Tokenizer, texts: Mapping[str, str]) -> list[list[int]]:
    """Ids of each text in order of the mapping, without special tokens."""
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts.values()]


def save_tokenizer(tokenizer: Tokenizer, folder: Path, length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json; `length` is the model's context in tokens."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
