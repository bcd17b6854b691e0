"""What a run has done so far, so that one that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wagle_trainer.adapters import SparseAdapter
from wagle_trainer.evaluation.results import load_results, save_results
from wagle_trainer.forgetting.search import Try
from wagle_trainer.masking import WeightMask
from wagle_trainer.utils.atomic_files import write_atomically
from wagle_trainer.utils.keyed_digests import make_folder_key, sealed

_REQUEST = "request.json"
_SETS = ("forget_set", "retain_set")


class WorkFolder:
    """Intermediate results of one request, in the folder `work` of its output.

    Args:
        folder: the output folder.
        request: what makes two runs the same: model, sets and settings. Digests of sets are written under a key that
            lies in the folder (see `utils.keyed_digests`).

    Raises:
        ValueError: the folder holds the work of another request; says what differs.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any]):
        self.folder = folder / "work"
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / _REQUEST
        known = load_results(file) if file.is_file() else None
        key = make_folder_key(self.folder)
        sets = {name: None if request[name] is None else sealed(request[name], key) for name in _SETS}
        present = json.loads(json.dumps({**request, **sets}))
        if known is not None and known != present:
            changed = sorted(key for key in {*known, *present} if known.get(key) != present.get(key))
            raise ValueError(
                f"{folder} holds another request, which differs in: {', '.join(_differences(known, present, changed))}. Give "
                "another --output_dir, or remove the folder."
            )
        if known is None:
            save_results(present, file)

    def result(self, name: str, make: Callable[[], Any]) -> Any:
        """A result that JSON can hold: read where it is known, else made and written."""
        file = self.folder / f"{name}.json"
        if not file.is_file():
            save_results(make(), file)
        return load_results(file)

    def masks(
        self, name: str, densities: Sequence[float], make: Callable[[], Mapping[float, WeightMask]]
    ) -> dict[float, WeightMask]:
        """The mask of each density, in the folder `name`: read where they are known, else made and written."""
        folders = {density: self.folder / name / f"{density:g}" for density in densities}
        if not all((folder / "mask_config.json").is_file() for folder in folders.values()):
            for density, mask in make().items():
                mask.save_pretrained(folders[density])
        return {density: WeightMask.from_pretrained(folder) for density, folder in folders.items()}

    def tries(self) -> list[Try]:
        """The tries so far."""
        file = self.folder / "tries.json"
        return [Try(**one) for one in load_results(file)] if file.is_file() else []

    def add_try(self, tries: Sequence[Try], patch: SparseAdapter | None) -> None:
        """Keep the last of the tries, and its patch."""
        if patch is not None:
            patch.save_pretrained(self._patch_folder(len(tries) - 1))
        save_results([one.as_dict() for one in tries], self.folder / "tries.json")

    def patch(self, index: int) -> SparseAdapter:
        """The patch of a try."""
        return SparseAdapter.from_pretrained(self._patch_folder(index))

    def _patch_folder(self, index: int) -> Path:
        return self.folder / "tries" / f"{index + 1:02}"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def digest_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of rows: says which they were, not what is in them."""
    return hashlib.sha256(json.dumps([dict(row) for row in rows], sort_keys=True, default=str).encode()).hexdigest()


def _differences(known: Mapping[str, Any], present: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        old, new = known.get(name), present.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [
                f"{key} ({old.get(key)!r} there)" for key in sorted({*old, *new}) if old.get(key) != new.get(key)
            ]
        else:
            found.append(name)
    return found
