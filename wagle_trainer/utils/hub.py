"""Files that lie in a folder or in a repository on the Hub."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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


class Shareable(ABC):
    """What can be pushed to the Hub: the files that `save_pretrained` writes, and a card.

    Attributes:
        commit_message: of the upload.
    """

    commit_message: ClassVar[str]

    @abstractmethod
    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the files into a folder."""

    @abstractmethod
    def card(self, repo_id: str, evaluation: Mapping[str, Mapping[str, Any]] | None = None) -> ModelCard:
        """The model card that `push_to_hub` uploads.

        Args:
            repo_id: full id of the repository.
            evaluation: label, such as "before" -> metric -> number.
        """

    def push_to_hub(
        self,
        repo_id: str,
        *,
        evaluation: Mapping[str, Mapping[str, Any]] | None = None,
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes and a card to a model repository on the Hub.

        Args:
            repo_id: of the repository, made if need be.
            evaluation: label, such as "before" -> metric -> number; for the card.
            private: whether a new repository is private; None for the account's default.
            token: of the Hub; None for the saved one.

        Returns:
            the commit's address.
        """

        def write(folder: Path, full_id: str) -> None:
            self.save_pretrained(folder)
            self.card(full_id, evaluation).save(folder / "README.md")

        return upload(write, repo_id, private=private, token=token, commit_message=self.commit_message)


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
