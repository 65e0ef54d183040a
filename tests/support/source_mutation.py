"""Errors planted in a package, each by one change to the text of one source file."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any

__all__ = ["Mutation", "mutated"]


@dataclass(frozen=True)
class Mutation:
    """In `file`, the text `old`, which stands there once, becomes `new`."""

    file: str
    old: str
    new: str
    error: str


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a changed text; keeps nothing on disk."""

    def __init__(self, name: str, path: str, mutation: Mutation) -> None:
        super().__init__(name, path)
        self.mutation = mutation

    def get_code(self, fullname: str) -> CodeType:
        text = self.get_data(self.path).decode()
        if self.path.endswith(f"/{self.mutation.file}"):
            count = text.count(self.mutation.old)
            if count != 1:
                raise ValueError(f"{self.mutation}: {count} places, not 1")
            text = text.replace(self.mutation.old, self.mutation.new)
        return compile(text, self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutation: Mutation, package: str) -> None:
        self.mutation, self.package = mutation, package

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if not f"{fullname}.".startswith(f"{self.package}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None and spec.origin is not None
        return importlib.util.spec_from_file_location(
            fullname,
            spec.origin,
            loader=_Loader(fullname, spec.origin, self.mutation),
            submodule_search_locations=spec.submodule_search_locations,
        )


def _loaded(package: str) -> dict[str, ModuleType]:
    return {n: m for n, m in sys.modules.items() if f"{n}.".startswith(f"{package}.")}


def mutated(mutation: Mutation, package: str) -> ModuleType:
    """A second copy of the package, with the error in it; the first stays imported."""
    original = _loaded(package)
    finder = _Finder(mutation, package)
    for name in original:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module(package)
    finally:
        sys.meta_path.remove(finder)
        for name in _loaded(package):
            del sys.modules[name]
        sys.modules.update(original)
        parent, _, last = package.rpartition(".")
        setattr(sys.modules[parent], last, original[package])
