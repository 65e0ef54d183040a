"""The split keeps held-out text out of training, loses nothing, and knows its text by digest."""

import pytest

from flightllm.models.corpus import (
    HELD_OUT,
    RUN,
    SHORT,
    VALIDATION,
    Corpus,
    load_corpus,
    runs,
    split_topics,
    text_digest,
)

LONG = "a paragraph that is long enough to belong to one topic only"
OTHER = "a second one, which no other topic of the documentation shares"


def paragraphs(texts: dict[str, str]) -> list[str]:
    """Every paragraph of `SHORT` characters or more, spaces collapsed."""
    keys = (" ".join(p.split()) for text in texts.values() for p in text.split("\n\n"))
    return [key for key in keys if len(key) >= SHORT]


def leaks(corpus: Corpus) -> set[str]:
    """Runs of the held-out or validation topics that a training paragraph has."""
    hidden = {run for text in corpus.held_out.values() for run in runs(text)}
    hidden |= {run for text in corpus.validation.values() for run in runs(text)}
    return hidden & {run for text in paragraphs(corpus.training) for run in runs(text)}


def test_no_held_out_paragraph_is_in_training() -> None:
    corpus = load_corpus()
    assert set(corpus.held_out) == set(HELD_OUT)
    assert set(corpus.validation) == set(VALIDATION)
    assert not leaks(corpus)
    kept = paragraphs(corpus.training)
    assert len(kept) == len(set(kept))
    share = sum(map(len, corpus.held_out.values())) / sum(map(len, corpus.training.values()))
    assert 0.06 < share < 0.14


def test_planted_leak_is_found() -> None:
    corpus = Corpus({"a": f"Title\n\n{LONG}\n"}, {}, {"b": f"Other\n\n{LONG}\n"}, "")
    assert LONG[:RUN] in leaks(corpus)


def test_training_paragraph_that_nearly_equals_a_held_out_one_is_left_out() -> None:
    topics = {"held": f"{LONG}\n", "train": f"{OTHER}\n\nAlso\n{LONG.upper()}\n\nAlso\n{LONG}\n"}
    assert split_topics(topics, ["held"], []).training == {
        "train": f"{OTHER}\n\nAlso\n{LONG.upper()}\n\n"
    }


def test_paragraph_goes_to_held_out_then_validation_then_the_shortest() -> None:
    topics = {
        "all": f"{LONG}\n\nNote:\n\n{OTHER}\n\nthe whole has one more paragraph than its parts\n",
        "part": f"{OTHER}\n",
        "held": f"{LONG}\n",
        "valid": "Note:\n\nshort ones may recur\n",
    }
    corpus = split_topics(topics, ["held"], ["valid"])
    assert corpus.held_out == {"held": f"{LONG}\n"}
    assert corpus.validation == {"valid": topics["valid"]}
    assert corpus.training == {
        "all": "Note:\n\nthe whole has one more paragraph than its parts\n",
        "part": f"{OTHER}\n",
    }


def test_text_without_repeats_is_kept_as_it_is() -> None:
    topics = {"a": "One\n===\n\n   indented   text\n \n\nend", "b": "Two\n"}
    assert split_topics(topics, ["b"], []).training == {"a": topics["a"]}


def test_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match="absent"):
        split_topics({"a": "text"}, ["absent"], [])


def test_digest_sees_every_change_but_not_the_order() -> None:
    digest = text_digest({"a": "x", "b": "y"})
    assert digest == text_digest({"b": "y", "a": "x"})
    assert len({digest, text_digest({"a": "x", "b": "z"}), text_digest({"a": "xb", "": "y"})}) == 3
