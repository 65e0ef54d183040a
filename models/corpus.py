"""The demo model's text: `pydoc_data.topics` of CPython 3.11, split by topic, nothing repeated.

The topics overlap: `compound` holds the whole text of `with`, `try` and others. A paragraph is
therefore given to one topic only: first to the held-out topics, then to the validation topics,
then to the training topics from the shortest on. Nearly equal paragraphs remain; those of the
training topics that share a run of `RUN` characters with a held-out or validation topic are left
out, so that no such run is in both, and no training paragraph counts twice.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = [
    "HELD_OUT",
    "RUN",
    "TEXT_DIGEST",
    "VALIDATION",
    "Corpus",
    "load_corpus",
    "runs",
    "split_topics",
    "text_digest",
]

HELD_OUT = ("binary", "calls", "dict", "global", "import", "objects", "raise", "subscriptions")
"""Topics that no part of the demo model is made from; its figures are measured on them."""

VALIDATION = ("booleans", "exprlists", "return", "slicings", "truth", "typesmethods", "unary")
"""Topics that choose when training stops."""

TEXT_DIGEST = "6c7d68cee92383c2d38e91c095bc7f45b93d936d39b8d4c5fe1b718baf09dc63"
"""`text_digest` of the topics of CPython 3.11.7, which the shipped demo model is trained on."""

SHORT = 40
"""Characters below which a paragraph ("Note:", "For example:") may occur in several topics."""

RUN = 50
"""Characters, white space collapsed, that training and the other topics may not have in common."""

_BREAK = re.compile(r"(\n[ \t]*\n)")


@dataclass(frozen=True)
class Corpus:
    """Topics by name, in three parts; training shares no run of `RUN` characters with the others.

    Attributes
    ----------
    training, validation, held_out : dict of str to str
        Text of each topic, sorted by name.
    digest : str
        `text_digest` of the topics before they were split.
    """

    training: dict[str, str]
    validation: dict[str, str]
    held_out: dict[str, str]
    digest: str


def text_digest(topics: Mapping[str, str]) -> str:
    """SHA-256 (hex) of name, NUL, text, NUL in UTF-8 over all topics, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(topics):
        digest.update(f"{name}\0{topics[name]}\0".encode())
    return digest.hexdigest()


def load_corpus() -> Corpus:
    """The running Python's topics, split; compare `digest` with `TEXT_DIGEST` before relying on it.

    Raises
    ------
    KeyError
        This Python's documentation lacks one of the held-out or validation topics.
    """
    from pydoc_data.topics import topics

    return split_topics(topics, HELD_OUT, VALIDATION)


def split_topics(
    topics: Mapping[str, str], held_out: Iterable[str], validation: Iterable[str]
) -> Corpus:
    """Split topics by name and give each paragraph of `SHORT` characters or more to one of them.

    Parameters
    ----------
    topics : mapping of str to str
        Text by topic name.
    held_out, validation : iterable of str
        Names; every other topic is for training.

    Raises
    ------
    KeyError
        A name is not in `topics`.
    """
    held, valid = sorted(held_out), sorted(validation)
    rest = sorted(set(topics) - set(held) - set(valid), key=lambda name: (len(topics[name]), name))
    seen: set[str] = set()
    parts: list[dict[str, str]] = []
    for names in (held, valid, rest):
        texts = {name: _without_seen(topics[name], seen) for name in names}
        parts.append({name: texts[name] for name in sorted(texts) if texts[name].strip()})
    held_part, valid_part, training = parts
    hidden = {
        run for part in (held_part, valid_part) for text in part.values() for run in runs(text)
    }
    training = {name: _without_runs(text, hidden) for name, text in training.items()}
    return Corpus(training, valid_part, held_part, text_digest(topics))


def runs(text: str) -> set[str]:
    """Every run of `RUN` characters of a text whose white space is collapsed."""
    flat = " ".join(text.split())
    return {flat[i : i + RUN] for i in range(len(flat) - RUN + 1)}


def _paragraphs(text: str) -> list[tuple[str, str]]:
    """Paragraphs, each with the empty line after it."""
    pieces = [*_BREAK.split(text), ""]  # paragraph, break, paragraph, break, ..., paragraph, ""
    return list(zip(pieces[0::2], pieces[1::2]))


def _without_seen(text: str, seen: set[str]) -> str:
    """`text` less its paragraphs in `seen`, to which its own are added; spacing stays."""
    kept = []
    for paragraph, gap in _paragraphs(text):
        key = " ".join(paragraph.split())
        if key in seen:
            continue
        if len(key) >= SHORT:
            seen.add(key)
        kept.append(paragraph + gap)
    return "".join(kept)


def _without_runs(text: str, hidden: set[str]) -> str:
    """`text` less the paragraphs that contain one of the runs."""
    return "".join(p + gap for p, gap in _paragraphs(text) if hidden.isdisjoint(runs(p)))
