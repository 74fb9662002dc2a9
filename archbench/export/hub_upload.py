"""An exported folder to the Hugging Face hub: nothing is written there before the hub knows who writes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from archbench.errors import StorageError, UsageError, one_line


class HubUpload:
    """A model repository that is to be made.

    Args:
        repository: ``USER/NAME``.
        public: whether everybody may read it.
        api: a ``huggingface_hub.HfApi``.

    Raises:
        UsageError: huggingface_hub is missing, or the name is not of that form.
        StorageError: the hub cannot be reached, knows nobody here, or has such a repository.
    """

    def __init__(self, repository: str, *, public: bool, api: Any = None) -> None:
        self._culprit, self._public = f"--push {repository}", public
        if repository.count("/") != 1 or not all(repository.split("/")):
            raise UsageError(self._culprit, "it is not of the form USER/NAME", "Name your account and the new model")
        if api is None:
            if find_spec("huggingface_hub") is None:
                step = "Run: pip install 'archbench[hf]'"
                raise UsageError(self._culprit, "it needs the package huggingface_hub", step)
            from huggingface_hub import HfApi

            api = HfApi(library_name="archbench")
        self._api, self._repository = api, repository
        step = "Log in with: hf auth login; or export to a folder, and bring it where there is a network"
        with self._asking("the hub cannot be asked", step):
            api.whoami()
            exists = api.repo_exists(repository)
        if exists:
            raise StorageError(self._culprit, "the hub has a model of that name", "Choose another")

    def upload(self, folder: Path) -> str:
        """Make the repository and put the folder's files in it, in one commit. Returns its address.

        Raises:
            StorageError: the hub refuses it, or the connection ends.
        """
        with self._asking("the hub refuses a repository", "Check the name, and what your token may do"):
            address = self._api.create_repo(self._repository, private=not self._public, exist_ok=False)
        step = f"It is made and empty. Try again: hf upload {self._repository} DIR"
        with self._asking("the upload failed", step):
            self._api.upload_folder(
                repo_id=self._repository, folder_path=str(folder), commit_message="Exported by archbench"
            )
        return str(address)

    def _asking(self, cause: str, step: str) -> _Asking:
        return _Asking(self._culprit, cause, step)


class _Asking:
    """Within this context an error of the hub is a StorageError: they have no common base."""

    def __init__(self, culprit: str, cause: str, step: str) -> None:
        self._culprit, self._cause, self._step = culprit, cause, step

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise StorageError(self._culprit, f"{self._cause} ({one_line(error)})", self._step) from error
