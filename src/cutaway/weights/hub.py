"""Models on the Hugging Face Hub: the files that make up a model, resumable, never pickle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

from cutaway.errors import CutawayError, NotFound
from cutaway.weights.contents import choose


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


def download(listing: Listing, staging: Path) -> Path:
    """Bring the files into a folder under `staging` and return it; files that were cut short are continued.

    (`huggingface_hub.snapshot_download` would begin each unfinished file anew in a new process.)
    """
    folder = staging / (listing.commit or "model")  # one per commit: halves of two versions must not meet
    for name, size in listing.sizes.items():
        url = hf_hub_url(listing.repository, name, revision=listing.commit)
        with explained(listing.repository):
            _download_file(url, folder / name, size)
    return folder


def _download_file(url: str, target: Path, size: int) -> None:
    """Fill `<target>.partial` up to `size` bytes, asking on while something arrives; then rename it."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.touch()
    while (have := partial.stat().st_size) < size:
        failure: httpx.TransportError | None = None
        try:
            _continue(url, partial, have)
        except httpx.TransportError as error:
            failure = error
        if partial.stat().st_size == have:
            raise failure or httpx.RemoteProtocolError(f"nothing more of {target.name} arrives")
    partial.rename(target)


def _continue(url: str, partial: Path, have: int) -> None:
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
        response.raise_for_status()
        with partial.open("ab" if response.status_code == httpx.codes.PARTIAL_CONTENT else "wb") as file:
            for block in response.iter_raw():
                file.write(block)


@contextmanager
def explained(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turn the Hub's errors into ours: what, where, what to do."""
    where = f"hf:{repository}" + (f"@{revision}" if revision else "")
    try:
        yield
    except GatedRepoError as error:
        hint = f"accept its terms at https://huggingface.co/{repository}, then `hf auth login` or set HF_TOKEN"
        raise CutawayError("is gated", where, hint) from error
    except RepositoryNotFoundError as error:
        raise NotFound("no such public model", where, "check the spelling; a private model needs HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise NotFound(f"no branch, tag or commit {revision!r}", where) from error
    except HFValidationError as error:
        raise CutawayError(str(error).split("\n")[0], where, "a model is named org/name") from error
    except (OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        reason = (str(error) or type(error).__name__).split("\n")[0]
        hint = "check the network (HF_ENDPOINT, HTTPS_PROXY) and pull again: it goes on where it stopped"
        raise CutawayError(f"the download did not finish: {reason}", where, hint) from error
