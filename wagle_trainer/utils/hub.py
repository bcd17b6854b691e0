"""Files that lie in a folder or in a repository on the Hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from huggingface_hub import ModelCard


def find_file(path_or_repo_id: str | os.PathLike[str], name: str, revision: str | None, what: str) -> Path:
    """Path of the file `name` in a folder or in a model repository on the Hub, from where it is fetched.

    Args:
        what: what the file belongs to, for the error message.

    Raises:
        FileNotFoundError: there is no such file.
    """
    folder = Path(path_or_repo_id)
    if folder.is_dir():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: there is no saved {what} in it.")
        return folder / name
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(str(path_or_repo_id), name, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"{os.fspath(path_or_repo_id)!r} is neither a folder with a saved {what} nor a repository on the Hub that "
            f"holds {name} and can be reached: {error}"
        ) from error


class Shareable(Protocol):
    """What can be pushed to the Hub."""

    def save_pretrained(self, save_directory: str) -> None: ...

    def describe(self) -> dict[str, Any]: ...


def push(
    thing: Shareable,
    card: Callable[[dict[str, Any], str, Mapping[str, Mapping[str, Any]] | None], ModelCard],
    repo_id: str,
    evaluation: Mapping[str, Mapping[str, Any]] | None,
    *,
    private: bool | None,
    token: str | None,
    commit_message: str,
) -> str:
    """Upload what `thing.save_pretrained` writes and a card to a model repository, made if need be; returns the commit's
    address.

    Args:
        card: makes the card; called with `thing.describe()`, the repository's full id, and `evaluation`.
    """

    def write(folder: Path, full_id: str) -> None:
        thing.save_pretrained(str(folder))
        card(thing.describe(), full_id, evaluation).save(folder / "README.md")

    return upload(write, repo_id, private=private, token=token, commit_message=commit_message)


def upload(
    write: Callable[[Path, str], None],
    repo_id: str,
    *,
    private: bool | None,
    token: str | None,
    commit_message: str,
) -> str:
    """Upload what `write` puts into a folder to a model repository, made if need be; returns the commit's address.

    Args:
        write: called with the folder and the repository's full id.
        repo_id: of the repository.
        private: whether a new repository is private; None for the account's default.
        token: of the Hub; None for the saved one.
        commit_message: of the upload.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), repo_id)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message))
