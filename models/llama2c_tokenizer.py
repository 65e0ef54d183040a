"""llama2.c's tokenizer file (tok*.bin): a vocabulary with scores, merged best score first.

It is SentencePiece's BPE in its simplest form: a text is split into characters (or bytes, where a
character is not in the vocabulary), then the adjacent pair whose union scores best is merged, the
leftmost of equals, until no union is in the vocabulary. Source: `run.c` of karpathy/llama2.c.
"""

from __future__ import annotations

import heapq
import re
import struct
from collections.abc import Sequence
from pathlib import Path

from flightllm.models.tokenizer import Tokenizer
from flightllm.spec.errors import InputError

__all__ = ["Llama2cTokenizer"]

_BOS, _EOS = 1, 2
_FIRST_BYTE = 3
"""Id of byte 0; the 256 bytes follow <unk>, <s> and </s>."""

_BYTE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


def _pieces(path: Path) -> tuple[list[bytes], list[float]]:
    """The file's tokens and their scores."""
    raw = path.read_bytes()
    tokens, scores, offset = list[bytes](), list[float](), 4
    while offset < len(raw):
        if offset + 8 > len(raw):
            raise InputError(f"{path}: is truncated in token {len(tokens)}")
        score, length = struct.unpack_from("<fi", raw, offset)
        offset += 8 + max(length, 0)
        if length < 0 or offset > len(raw):
            raise InputError(
                f"{path}: is no llama2.c tokenizer, or truncated: token {len(tokens)} has"
                f" {length} bytes"
            )
        tokens.append(raw[offset - length : offset])
        scores.append(score)
    if len(tokens) < _FIRST_BYTE + 256:
        raise InputError(
            f"{path}: is no llama2.c tokenizer: it has {len(tokens)} tokens, fewer than the"
            f" 3 special ones and the 256 bytes"
        )
    return tokens, scores


class Llama2cTokenizer(Tokenizer):
    """A tokenizer file of llama2.c.

    Parameters
    ----------
    path : of the file.

    Raises
    ------
    InputError : when it is truncated or no such file.
    """

    def __init__(self, path: Path) -> None:
        tokens, self._scores = _pieces(path)
        self._ids: dict[bytes, int] = {}
        for token, piece in enumerate(tokens):
            self._ids.setdefault(piece, token)
        self._pieces = [
            bytes([int(match[1], 16)]) if (match := _BYTE.fullmatch(piece)) else piece
            for piece in tokens
        ]
        self._tokens = tokens
        super().__init__(len(tokens), _BOS, (_BOS, _EOS))

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of a text; a space is put in front of it, as llama2.c does."""
        ids: list[int] = []
        for character in f" {text}" if text else "":
            piece = character.encode()
            known = self._ids.get(piece)
            ids += [byte + _FIRST_BYTE for byte in piece] if known is None else [known]
        return [_BOS] * bos + self._merged(ids)

    def _merged(self, ids: list[int]) -> list[int]:
        """Merge pairs, best score first; a heap of candidates over a linked list of tokens."""
        after = [*range(1, len(ids) + 1)]
        before = [*range(-1, len(ids) - 1)]
        alive = [True] * len(ids)
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(left: int) -> None:
            right = after[left]
            if right < len(ids):
                union = self._ids.get(self._tokens[ids[left]] + self._tokens[ids[right]])
                if union is not None:
                    entry = (-self._scores[union], left, union, ids[left], ids[right])
                    heapq.heappush(heap, entry)

        for left in range(len(ids)):
            offer(left)
        while heap:
            _, left, union, *pair = heapq.heappop(heap)
            right = after[left]
            # An entry is stale when either of its tokens has been merged since.
            if not alive[left] or right == len(ids) or [ids[left], ids[right]] != pair:
                continue
            ids[left], alive[right], after[left] = union, False, after[right]
            if after[left] < len(ids):
                before[after[left]] = left
            offer(left)
            if before[left] >= 0:
                offer(before[left])
        return [token for token, living in zip(ids, alive) if living]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; the space behind BOS, which encoding put there, is left out."""
        out = b""
        for previous, token in zip((None, *ids), ids):
            if token in (_BOS, _EOS) or token >= self.vocab:  # spare rows of an embedding
                continue
            piece = self._pieces[token]
            out += piece.removeprefix(b" ") if previous == _BOS else piece
        return out.decode("utf-8", errors="replace")
