"""Models on the Hugging Face Hub: the files that make up a model, resumable, never pickle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm

from cutaway.errors import CutawayError, NotFound
from cutaway.weights.contents import choose


class _Silent(tqdm):
    """The Hub's own progress bars, switched off: the caller draws one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


class Listing(NamedTuple):
    """The files to fetch from one repository at one commit.

    sizes:  file -> bytes.
    sha256: file -> digest, for those that the Hub keeps one of (the large ones).
    license: as its card names it; empty if it does not.
    """

    repository: str
    commit: str | None
    sizes: dict[str, int]
    sha256: dict[str, str]
    license: str


def look_up(repository: str, revision: str | None, pick: str) -> Listing:
    """Ask the Hub what there is, and choose; `pick` names one GGUF of several."""
    with explained(repository, revision):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    files = {file.rfilename: file for file in info.siblings or []}
    chosen = choose(list(files), pick, f"hf:{repository}")
    sizes = {name: files[name].size or 0 for name in chosen}
    sha256 = {name: lfs.sha256 for name in chosen if (lfs := files[name].lfs)}
    return Listing(repository, info.sha, sizes, sha256, str(getattr(info.card_data, "license", None) or ""))


def download(listing: Listing, folder: Path, staging: Path) -> None:
    """Bring the files into `folder`; what an interrupted call left there is continued, not repeated."""
    with explained(listing.repository, listing.commit):
        snapshot_download(
            listing.repository,
            revision=listing.commit,
            allow_patterns=list(listing.sizes),
            local_dir=folder,
            cache_dir=staging / "hub",
            tqdm_class=_Silent,
        )
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the Hub client's notes on what it has fetched
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in listing.sizes:
            path.unlink()  # left by a pull of an older revision


@contextmanager
def explained(repository: str, revision: str | None) -> Iterator[None]:
    """Turn the Hub's errors into ours: what, where, what to do."""
    where = f"hf:{repository}" + (f"@{revision}" if revision else "")
    try:
        yield
    except GatedRepoError as error:
        hint = (
            f"accept its terms at https://huggingface.co/{repository}, then `hf auth login` or set HF_TOKEN"
        )
        raise CutawayError("is gated", where, hint) from error
    except RepositoryNotFoundError as error:
        raise NotFound(
            "no such public model", where, "check the spelling; a private model needs HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise NotFound(f"no branch, tag or commit {revision!r}", where) from error
    except HFValidationError as error:
        raise CutawayError(str(error).split("\n")[0], where, "a model is named org/name") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        reason = (str(error) or type(error).__name__).split("\n")[0]
        hint = "check the network (HF_ENDPOINT, HTTPS_PROXY) and pull again: it goes on where it stopped"
        raise CutawayError(f"the download did not finish: {reason}", where, hint) from error
