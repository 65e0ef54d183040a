"""The tokeniser in a GGUF file as the files of a Hugging Face folder, which `tokenizer.py` reads.

Two kinds are known: `llama` (SentencePiece's BPE, where the best scored union is merged first) and
`gpt2` (byte-level BPE with a list of merges, its splitting rule named by `tokenizer.ggml.pre`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from flightllm.models.gguf_file import GgufFile
from flightllm.spec.errors import InputError

__all__ = ["SPLITTERS", "special_ids", "tokenizer_files"]

_UNKNOWN, _CONTROL, _USER = 2, 3, 4
"""Values of tokenizer.ggml.token_type that are matched whole in a text."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTERS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
}
"""How `tokenizer.ggml.pre` splits a text before merging: the published expressions."""


def _id(file: GgufFile, name: str, vocab: int) -> int | None:
    value = file.fields.get(f"tokenizer.ggml.{name}_token_id")
    return value if isinstance(value, int) and 0 <= value < vocab else None


def special_ids(file: GgufFile, vocab: int) -> tuple[int | None, tuple[int, ...]]:
    """The token in front of a text, if any, and those that end one."""
    ends = (_id(file, name, vocab) for name in ("eos", "eot"))
    return _id(file, "bos", vocab), tuple(dict.fromkeys(t for t in ends if t is not None))


def tokenizer_files(file: GgufFile) -> Callable[[], dict[str, str]] | None:
    """A function that gives name and text of each file; None where the file has no tokeniser."""
    if "tokenizer.ggml.tokens" not in file.fields:
        return None
    return lambda: _files(file)


def _array(file: GgufFile, name: str, count: int | None, kinds: tuple[type, ...]) -> Any:
    value = file.fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, kinds) or (count is not None and len(value) != count):  # type: ignore[arg-type]
        raise InputError(f"{file.path}: tokenizer.ggml.{name} is missing or of a wrong length")
    return value


def _files(file: GgufFile) -> dict[str, str]:
    tokens: list[str] = _array(file, "tokens", None, (list,))
    if len(set(tokens)) != len(tokens):
        raise InputError(f"{file.path}: tokenizer.ggml.tokens has a token twice")
    kind = file.fields.get("tokenizer.ggml.model")
    makers = {"llama": _sentencepiece, "gpt2": _byte_level}
    if kind not in makers:
        raise InputError(
            f"{file.path}: tokenizer.ggml.model {kind!r} is not supported (only"
            f" {', '.join(makers)})"
        )
    kinds = file.fields.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        kinds = np.ones(len(tokens), np.int32)
    added = [
        {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": int(kinds[i]) != _USER}
        for i in np.flatnonzero(np.isin(kinds, (_UNKNOWN, _CONTROL, _USER))).tolist()
    ]  # fmt: skip
    body = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "post_processor": None, **makers[kind](file, tokens),
    }  # fmt: skip
    return {
        "tokenizer.json": json.dumps(body, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(_rules(file, tokens, kind == "llama")),
    }


def _rules(file: GgufFile, tokens: list[str], adds: bool) -> dict[str, Any]:
    bos, ends = special_ids(file, len(tokens))
    rules: dict[str, Any] = {"bos_token": None if bos is None else tokens[bos]}
    if ends:
        rules["eos_token"] = tokens[ends[0]]
    flag = file.fields.get("tokenizer.ggml.add_bos_token")
    rules["add_bos_token"] = flag if isinstance(flag, bool) else adds
    template = file.fields.get("tokenizer.chat_template")
    if isinstance(template, str):
        rules["chat_template"] = template
    return rules


def _sentencepiece(file: GgufFile, tokens: list[str]) -> dict[str, Any]:
    scores = _array(file, "scores", len(tokens), (np.ndarray,))
    ids = {token: i for i, token in enumerate(tokens)}
    ranked: list[tuple[float, int, str, str]] = []
    for token, score in zip(tokens, scores.tolist()):
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        ranked += [
            (-score, ids[token], a, b) for a, b in cuts if a in ids and b in ids
        ]  # fmt: skip
    ranked.sort()
    prefix = file.fields.get("tokenizer.ggml.add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    front = [{"type": "Prepend", "prepend": "\u2581"}] if prefix else []
    unknown = file.fields.get("tokenizer.ggml.unknown_token_id", 0)
    named = isinstance(unknown, int) and 0 <= unknown < len(tokens)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*front, spaces]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
            ],
        },
        "model": {
            "type": "BPE", "unk_token": tokens[unknown] if named else None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False, "vocab": ids,
            "merges": [[a, b] for _, _, a, b in ranked],
        },
    }  # fmt: skip


def _byte_level(file: GgufFile, tokens: list[str]) -> dict[str, Any]:
    pre = file.fields.get("tokenizer.ggml.pre", "default")
    if pre not in SPLITTERS:
        raise InputError(
            f"{file.path}: tokenizer.ggml.pre {pre!r} is not supported (only"
            f" {', '.join(SPLITTERS)}): give the Hugging Face folder of the model"
        )
    merges = [line.split(" ", 1) for line in _array(file, "merges", None, (list,))]
    if any(len(pair) != 2 for pair in merges):
        raise InputError(f"{file.path}: tokenizer.ggml.merges has an entry that is no pair")
    byte = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLITTERS[pre]}, "behavior": "Isolated",
                 "invert": False},
                {**byte, "use_regex": False},
            ],
        },
        "decoder": {**byte, "use_regex": True},
        "model": {
            "type": "BPE", "unk_token": None, "byte_fallback": False,
            "ignore_merges": pre in ("llama-bpe", "llama3"),
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges,
        },
    }  # fmt: skip
