"""Text to token ids and back: a Hugging Face folder's tokenizer.json or llama2.c's tokenizer file.

Besides the vocabulary a tokeniser knows what the model wants around a text: the token in front of
it, the tokens that end it, and the chat template. No torch here: a board needs this module.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flightllm.models.config import ModelConfig
from flightllm.models.hf_config import read_json
from flightllm.spec.errors import InputError

__all__ = ["StreamDecoder", "Tokenizer", "check_vocabulary", "load_tokenizer"]

_REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER = 4
"""Bytes of UTF-8's longest character, and so the most tokens one can be spread over."""


class Tokenizer(ABC):
    """A vocabulary and its rules.

    Members
    -------
    vocab : number of token ids. bos : the token in front of a text, or None.
    eos : the tokens that end a text. template : Jinja source of the chat template, or None.
    """

    def __init__(
        self,
        vocab: int,
        bos: int | None,
        eos: Sequence[int],
        template: str | None = None,
        special: Mapping[str, str] | None = None,
    ) -> None:
        self.vocab, self.bos, self.eos = vocab, bos, tuple(eos)
        self.template, self._special = template, dict(special or {})

    @abstractmethod
    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of a text; with `bos`, behind the token that the model wants first, if any."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out, bytes that are no UTF-8 as U+FFFD."""

    def stream(self, after: Sequence[int] = ()) -> StreamDecoder:
        """A decoder for tokens that come one by one, behind the tokens `after` (the prompt)."""
        return StreamDecoder(self, after)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for a conversation, by the model's chat template, open for the reply.

        Parameters
        ----------
        messages : each with "role" and "content". The text carries its own special tokens: encode
            it with bos=False.

        Raises
        ------
        InputError : when the model has no template, or the template refuses the messages.
        """
        if self.template is None:
            raise InputError("the model has no chat template: give it a plain prompt")
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise InputError(f"the chat template refuses the messages: {message}")

        # The environment that transformers gives to templates, but for today's date: a prompt
        # must not depend on the day (templates that ask for it have a default).
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _plain_json
        environment.globals["raise_exception"] = refuse
        try:
            template = environment.from_string(self.template)
            return template.render(
                messages=list(messages), add_generation_prompt=True, **self._special
            )
        except (TemplateError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the chat template fails: {error}") from error


def _plain_json(value: Any, indent: int | None = None) -> str:
    """JSON for a prompt: without Jinja's escapes for web pages."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


class StreamDecoder:
    """Text of tokens as they come, in whole characters.

    The pieces together are the text of all tokens, wherever these stand for valid UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # How a token reads depends on the one before it, so the tokens from the last but one
        # character boundary on (at first the whole prompt) are decoded together.
        self._window = list(after)
        self._boundary = len(self._window)
        self._told = len(tokenizer.decode(self._window).rstrip(_REPLACEMENT))
        self._waiting = 0  # tokens in a row that ended inside a character and told nothing

    def push(self, token: int) -> str:
        """Take one token; gives the text that is now certain, which may be empty."""
        self._window.append(token)
        return self._piece(final=False)

    def finish(self) -> str:
        """The rest of the text, an incomplete character as U+FFFD."""
        return self._piece(final=True)

    def _piece(self, final: bool) -> str:
        text = self._tokenizer.decode(self._window)
        inside = text.endswith(_REPLACEMENT)
        self._waiting = self._waiting + 1 if inside else 0
        # No character is spread over more tokens than that: these bytes are no UTF-8.
        certain = not inside or final or self._waiting >= _LONGEST_CHARACTER
        piece = (text if certain else text.rstrip(_REPLACEMENT))[self._told :]
        if piece:
            self._told += len(piece)
            self._waiting = 0
        if piece and certain:
            self._window = self._window[self._boundary :]
            self._boundary = len(self._window)
            self._told = len(self._tokenizer.decode(self._window))
        return piece


class _HfTokenizer(Tokenizer):
    """tokenizer.json, run by the `tokenizers` package."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Engine

        self._path = path = folder / "tokenizer.json"
        self._engine: Any = self._guarded("is not a tokenizer", Engine.from_file, str(path))
        vocab = max(self._engine.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        rules, generation, model = (
            read_json(folder / name) if (folder / name).is_file() else {}
            for name in ("tokenizer_config.json", "generation_config.json", "config.json")
        )
        special = {
            name: text
            for name, value in rules.items()
            if name.endswith("_token") and (text := _content(value)) is not None
        }
        bos = self._single(special, rules, (generation, model), vocab)
        super().__init__(
            vocab,
            bos,
            self._ends(special, (generation, model), vocab),
            _template(folder, rules),
            special,
        )
        adds = rules.get("add_bos_token")
        if not isinstance(adds, bool):
            adds = self._encoded("", add_special_tokens=True)[:1] == [bos]
        self._adds_bos = adds and bos is not None

    def _guarded(self, what: str, call: Callable[..., Any], *given: Any, **how: Any) -> Any:
        """A call of the package, which raises bare Exceptions and, from Rust, panics."""
        try:
            return call(*given, **how)
        except BaseException as error:
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise InputError(f"{self._path}: {what} ({error})") from error
            raise

    def _encoded(self, text: str, **how: Any) -> list[int]:
        made = self._guarded("fails on a text", self._engine.encode, text, **how)
        ids: list[int] = made.ids
        return ids

    def _single(
        self,
        special: Mapping[str, str],
        rules: Mapping[str, Any],
        configs: Sequence[Mapping[str, Any]],
        vocab: int,
    ) -> int | None:
        if "bos_token" in special:
            token: int | None = self._engine.token_to_id(special["bos_token"])
            return token
        if "bos_token" in rules:  # an explicit null: texts begin with nothing
            return None
        ids = [token for data in configs for token in _ids(data.get("bos_token_id"), vocab)]
        return ids[0] if ids else None

    def _ends(
        self, special: Mapping[str, str], configs: Sequence[Mapping[str, Any]], vocab: int
    ) -> tuple[int, ...]:
        """The first that says anything of generation_config, config and tokenizer_config."""
        for data in configs:
            ids = _ids(data.get("eos_token_id"), vocab)
            if ids:
                return ids
        token = self._engine.token_to_id(special["eos_token"]) if "eos_token" in special else None
        return () if token is None else (token,)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        ids = self._encoded(text, add_special_tokens=False)
        return [self.bos, *ids] if bos and self._adds_bos and self.bos is not None else ids

    def decode(self, ids: Sequence[int]) -> str:
        how = {"skip_special_tokens": True}
        text: str = self._guarded("fails on ids", self._engine.decode, list(ids), **how)
        return text


def _content(value: Any) -> str | None:
    """The text of a special token, which may be written as an object with attributes."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _ids(value: Any, vocab: int) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    return tuple(token for token in ids if isinstance(token, int) and 0 <= token < vocab)


def _template(folder: Path, rules: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = rules.get("chat_template")
    if isinstance(template, list):
        named = {part.get("name"): part.get("template") for part in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _neighbour(model: Path) -> Path:
    """The tokenizer file of a llama2.c model: tok{vocab}.bin or tokenizer.bin beside it."""
    from flightllm.models.llama2c import read_header

    vocab = read_header(model).config.vocab
    for name in (f"tok{vocab}.bin", "tokenizer.bin"):
        if (model.parent / name).is_file():
            return model.parent / name
    raise InputError(f"{model}: neither tok{vocab}.bin nor tokenizer.bin lies beside it")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokeniser of a model.

    Parameters
    ----------
    path : a Hugging Face folder, a tokenizer.json, a llama2.c tokenizer (tok*.bin) or a llama2.c
        model, whose tokenizer lies beside it.

    Raises
    ------
    InputError : when there is none, or it cannot be read.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.name == "tokenizer.json":
        if not (folder / "tokenizer.json").is_file():
            raise InputError(f"{folder}: has no tokenizer.json")
        return _HfTokenizer(folder)
    if not path.is_file():
        raise InputError(f"{path}: there is no such folder or file")
    from flightllm.models.llama2c_tokenizer import Llama2cTokenizer

    return Llama2cTokenizer(path if path.name.startswith("tok") else _neighbour(path))


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Refuse a tokeniser that belongs to another model.

    The embedding may have spare rows (vocabularies are padded for speed), up to an eighth.

    Raises
    ------
    InputError : when the tokeniser has ids without an embedding, or far too few ids.
    """
    if not config.vocab * 7 // 8 <= tokenizer.vocab <= config.vocab:
        raise InputError(
            f"{config.name}: the tokenizer has {tokenizer.vocab} ids, but the model embeds"
            f" {config.vocab}: they do not belong together"
        )
