"""A table of named things that users can add to: losses, attribution scores, suites, attacks."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Names and the things they stand for, with errors that list what there is."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters a thing under `name`.

        Raises:
            ValueError: the name is taken by another thing.
        """

        def enter(entry: T) -> T:
            known = self._entries.get(name)
            # A module that is reloaded, as in a notebook, defines the same thing again: that may replace the old one.
            if known is not None and _origin(known) != _origin(entry):
                raise ValueError(f"The {self.kind} {name!r} exists already: {known!r}.")
            self._entries[name] = entry
            return entry

        return enter

    def get(self, name: str) -> T:
        """The thing registered under `name`.

        Raises:
            ValueError: unknown name; the message lists the known ones.
        """
        if name not in self._entries:
            close = difflib.get_close_matches(str(name), self._entries, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Unknown {self.kind} {name!r}.{hint} Known: {', '.join(self.names())}.")
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)

    def describe(self) -> dict[str, str]:
        """Name -> first paragraph of the docstring, in one line."""
        return {
            name: " ".join((inspect.getdoc(self._entries[name]) or "").split("\n\n")[0].split())
            for name in self.names()
        }


def import_all(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that what they register is known."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


def _origin(entry: object) -> tuple[object, object]:
    return getattr(entry, "__module__", None), getattr(entry, "__qualname__", None)
