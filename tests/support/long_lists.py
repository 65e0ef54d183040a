"""Long lists of cases: a part of them in every run, all of them with `-m slow`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["one_in"]


def one_in(every: int, cases: Iterable[Any]) -> list[Any]:
    """`cases` for `parametrize`, tuples of arguments or single ones: of `every` cases only the
    first is in runs that leave out what is marked slow."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=pytest.mark.slow if number % every else (),
        )
        for number, case in enumerate(cases)
    ]
