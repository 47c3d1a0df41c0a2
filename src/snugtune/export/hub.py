"""An exported folder onto the Hugging Face Hub, through ``huggingface_hub``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from snugtune.errors import SnugtuneError, UserInputError
from snugtune.export.export import MARKER, Dtype, Exported, export_run
from snugtune.files import write_text
from snugtune.predict.record import read_record
from snugtune.progress import Observer
from snugtune.report.card import export_card

What = Literal["auto", "adapter", "merged"]

HTTP_CLIENTS = {"httpx", "httpx2", "httpcore", "httpcore2"}
"""What ``huggingface_hub`` asks through, by release; their errors are no ``OSError``."""

OF_THE_HUB = {".gitattributes", "README.md"}
"""Files that the Hub or its web page puts into a new repository."""


class HubError(SnugtuneError):
    """The Hub refused, or cannot be reached."""


def export_to_hub(
    run: str | Path,
    repo_id: str,
    *,
    what: What = "auto",
    dtype: Dtype = "float32",
    rows: str | Path | None = None,
    private: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> tuple[Exported, str]:
    """Export the folder ``run``, check it as ``export_run`` does, and push it with its card and report.

    ``what`` is pushed: the merged model, or the adapter alone, which is small and needs its base model;
    ``auto`` is the adapter where its base model is on the Hub as well. Returns the page's address, too.

    Raises:
        UserInputError: as ``export_run``; nobody is logged in, or the repository is not one to write to; the
            adapter's base model is a folder of this machine.
        ArtifactError: as ``export_run``.
        HubError: the Hub refuses or cannot be reached.
    """
    run, observer = Path(run), observer or Observer()
    record = read_record(run)
    to = _what(run, record, what, dtype)
    check_repository(repo_id, overwrite=overwrite)
    with TemporaryDirectory(prefix="snugtune-") as temporary:
        folder = Path(temporary) / "export"
        exported = export_run(run, folder, to=to, dtype=dtype, rows=rows, observer=observer)
        write_text(folder / "README.md", export_card(record, to, repo_id))
        if (run / "report.html").is_file():
            shutil.copy(run / "report.html", folder)
        observer.phase("push")
        return exported, push(folder, repo_id, private=private)


def _what(run: Path, record: dict[str, Any], what: str, dtype: str) -> Literal["adapter", "merged"]:
    base = _base_of_adapter(run, record)
    is_shared = base is not None and not Path(base).is_absolute()
    if what == "adapter" and base is not None and not is_shared:
        raise UserInputError(
            f"The adapter's base model is a folder of this machine ({base}), which others do not have; "
            "push the merged model."
        )
    if what == "auto":
        return "adapter" if is_shared and dtype == "float32" else "merged"
    if what not in ("adapter", "merged"):
        raise UserInputError(f"What is pushed must be auto, adapter or merged, not {what!r}.")
    return what  # type: ignore[return-value]  # narrowed by a tuple


def _base_of_adapter(run: Path, record: dict[str, Any]) -> str | None:
    """The name or absolute folder of the model that the run's adapter is for; None if it has no adapter."""
    if record["model"]["folder"] != "adapter":
        return None
    try:
        found = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
        return str(found["base_model_name_or_path"])
    except (OSError, ValueError, KeyError):
        raise UserInputError(f"{run / 'adapter'} holds no readable adapter_config.json.") from None


def check_repository(repo_id: str, *, overwrite: bool = False) -> None:
    """Refuse, before any work, what could not be pushed at its end.

    Raises:
        UserInputError: the name is none, nobody is logged in, or the repository holds something already and
            ``overwrite`` is not set or it was not filled by ``snugtune export``.
        HubError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with _one_sentence(repo_id):
        api = HfApi()
        try:
            files = set(api.list_repo_files(repo_id)) - OF_THE_HUB
        except RepositoryNotFoundError:
            files = set()
        api.whoami()
    if files and MARKER not in files:
        raise UserInputError(
            f"The repository {repo_id} holds files that snugtune did not put there; choose another --repo-id."
        )
    if files and not overwrite:
        raise UserInputError(
            f"The repository {repo_id} already holds an export; choose another --repo-id or add --overwrite."
        )


def push(folder: Path, repo_id: str, *, private: bool = False, message: str = "Export of a run") -> str:
    """Push the files of ``folder`` and check that they have arrived; returns the page's address.

    The token is the usual one (``hf auth login`` or ``HF_TOKEN``). Files of an earlier export that are not in
    ``folder`` are removed.

    Raises:
        UserInputError: nobody is logged in, or the token may not write there.
        HubError: the Hub refuses or cannot be reached, or a file has not arrived.
    """
    from huggingface_hub import HfApi

    with _one_sentence(repo_id):
        api = HfApi()
        url = str(api.create_repo(repo_id, private=private, exist_ok=True))
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns="*")
        arrived = set(api.list_repo_files(repo_id))
    lost = sorted({path.name for path in folder.iterdir()} - arrived)
    if lost:
        raise HubError(f"The Hub took the commit, but {', '.join(lost)} is not in {repo_id}; push again.")
    return url


@contextmanager
def _one_sentence(repo_id: str) -> Iterator[None]:
    """Errors of the library as one sentence that says what to do."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except HFValidationError:
        raise UserInputError(
            f"{repo_id} is no name of a repository; name it as OWNER/NAME with --repo-id."
        ) from None
    except LocalTokenNotFoundError:
        raise UserInputError("You are not logged in to the Hub; run: hf auth login.") from None
    except OfflineModeIsEnabled:
        raise UserInputError("HF_HUB_OFFLINE forbids to reach the Hub; unset it.") from None
    except HfHubHTTPError as error:
        raise _refusal(error, repo_id) from None
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in HTTP_CLIENTS:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise HubError(f"The Hub cannot be reached: {reason}") from None


def _refusal(error: Any, repo_id: str) -> SnugtuneError:
    status = getattr(error.response, "status_code", None)
    if status == 401:
        return UserInputError("The Hub does not accept the token; run: hf auth login.")
    if status == 403:
        return UserInputError(
            f"The token may not write to {repo_id}; log in with one that may, or choose another --repo-id."
        )
    reason = (error.server_message or str(error)).strip().splitlines()[0][:200]
    return HubError(f"The Hub refused ({status}): {reason}")
