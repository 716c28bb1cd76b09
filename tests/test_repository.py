"""The repository keeps its habits: layers, short functions, light imports, documents that tell the truth."""

from __future__ import annotations

import ast
import io
import re
import statistics
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "cutaway"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# A module imports from the rows above its own and from its own package; neighbors do not know each other.
LAYERS = """
errors
files
text nn
classics
models
native
weights
budget
engine
inside
train
adapt align compress embed
retrieve
agents
evaluate
operate
serve
apps
labs
studio
cli
"""
RANK = {name: rank for rank, row in enumerate(LAYERS.split("\n")) for name in row.split()}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def layer(module: str) -> str:
    """cutaway.nn.norms -> nn."""
    return [*module.split("."), ""][1]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of each of our modules that `path` imports, wherever in the file."""
    here = ["cutaway", *path.relative_to(PACKAGE).with_suffix("").parts]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level], *filter(None, [node.module])] if node.level else [node.module]
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "cutaway")


# ---- layering


def test_every_package_has_a_place() -> None:
    found = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p.is_dir() and any(p.glob("*.py")))}
    assert found - {"__init__", "__main__"} <= set(RANK), "add the new package to LAYERS, and to docs/architecture.md"


def forbidden(path: Path) -> list[str]:
    own = layer(".".join(["cutaway", *path.relative_to(PACKAGE).with_suffix("").parts]))
    if own in ("__init__", "__main__"):
        return []
    # `from cutaway import nn` and `import cutaway` reach the package's own face, which imports nothing.
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports(path)
        if (other := layer(name)) in RANK and other != own and RANK[other] >= RANK[own]
    ]


def test_imports_run_downward() -> None:
    assert [fault for path in SOURCES for fault in forbidden(path)] == []


def test_layering_is_noticed_when_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to write an upward import is seen, and a downward one is not."""
    module = tmp_path / "nn" / "norms.py"
    module.parent.mkdir()
    for name, value in {"PACKAGE": tmp_path, "ROOT": tmp_path}.items():
        monkeypatch.setitem(globals(), name, value)
    for line, faults in {
        "import cutaway.models.spec": 1,
        "from cutaway import models": 1,
        "from cutaway.text import bpe": 1,
        "from ..models import spec": 1,
        "from .. import engine, errors": 1,
        "def f():\n    from cutaway.cli import main": 1,
        "if TYPE_CHECKING:\n    from cutaway.models import Spec": 1,
        "from cutaway.errors import CutawayError": 0,
        "from .positions import rope": 0,
        "from cutaway.nn.positions import rope": 0,
        "import torch.nn, models": 0,
    }.items():
        module.write_text(line)
        assert len(forbidden(module)) == faults, line


# ---- size


def lengths() -> dict[str, int]:
    """Lines of each function, nested ones counted in the one around them too; the docstring counts."""
    return {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_functions_are_short() -> None:
    found = lengths()
    assert {name: lines for name, lines in found.items() if lines > 100} == {}
    assert statistics.median(found.values()) <= 12
    longest = sorted(found.items(), key=lambda item: -item[1])
    allowed = len(found) // 20
    assert longest[allowed][1] <= 45, f"more than 5 % of the functions exceed 45 lines: {longest[: allowed + 1]}"


# ---- what is imported, and what is never used


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def distribution(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def core_distributions() -> set[str]:
    """What `pip install cutaway` brings: our dependencies and theirs, extras left out."""
    found: set[str] = set()
    wanted = [distribution(line) for line in project()["dependencies"]]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            try:
                required = metadata.requires(name) or []
            except metadata.PackageNotFoundError:  # needed on other systems only
                continue
            wanted += [distribution(line) for line in required if "extra ==" not in line]
    return found


IMPORT_ALL = """
import importlib, pkgutil, sys

foreign = set(sys.argv[1].split())

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in foreign:
            raise ModuleNotFoundError(f"{name} is not a core dependency", name=name)

sys.meta_path.insert(0, Blocker())
import cutaway
failed = []
for module in pkgutil.walk_packages(cutaway.__path__, "cutaway.", onerror=lambda name: None):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except Exception as error:
            failed.append(f"{module.name}: {type(error).__name__}: {error}")
print("\\n".join(failed))
"""


def test_every_module_imports_with_core_dependencies_only() -> None:
    core = core_distributions() | {"cutaway"}
    installed = metadata.packages_distributions()
    foreign = {name for name, owners in installed.items() if not core & {distribution(o) for o in owners}}
    assert {"pytest", "transformers"} <= foreign
    assert not {"torch", "numpy", "click", "starlette"} & foreign
    command = [sys.executable, "-c", IMPORT_ALL, " ".join(foreign)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stdout + run.stderr


UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "os.system", "os.popen"}
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def dotted(node: ast.expr) -> str:
    """`torch.load` of the expression torch.load; "" for anything that is not a dotted name."""
    match node:
        case ast.Name(id):
            return id
        case ast.Attribute(value, attribute):
            return f"{dotted(value)}.{attribute}"
    return ""


def unsafe(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        match node:
            case ast.Call(func, _, keywords):
                if dotted(func) in UNSAFE_CALLS:
                    yield f"line {node.lineno}: {dotted(func)}"
                if any(
                    k.arg == "shell" and not (isinstance(k.value, ast.Constant) and not k.value.value) for k in keywords
                ):
                    yield f"line {node.lineno}: shell="
            case ast.Import(names):
                yield from (f"line {node.lineno}: {n.name}" for n in names if n.name.split(".")[0] in UNSAFE_MODULES)
            case ast.ImportFrom(name) if name and name.split(".")[0] in UNSAFE_MODULES:
                yield f"line {node.lineno}: {name}"


def test_nothing_runs_what_it_reads() -> None:
    assert {path: found for path in SOURCES if (found := list(unsafe(tree(path))))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "eval(x)",
        "torch.load(p)",
        "f(shell=True)",
        "f(shell=x)",
        "yaml.load(x)",
    ],
)
def test_unsafe_code_is_noticed(line: str) -> None:
    assert list(unsafe(ast.parse(line)))


def test_safe_code_is_left_alone() -> None:
    assert not list(
        unsafe(ast.parse("model.eval(); torch.compile(f); re.compile(x); f(shell=False); yaml.safe_load(x)"))
    )


def test_no_half_of_a_text_is_left_behind() -> None:
    """A formatted string that is a statement of its own was meant to continue the line above."""
    lost = [
        (path, node.lineno)
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.JoinedStr)
    ]
    assert lost == []


# ---- what the tree holds

TEXT = {".py", ".md", ".toml", ".sh", ".ts", ".svelte", ".css", ".html", ".yaml", ".yml", ".json", ".js", ""}
LOCAL_PATH = re.compile(r"(?<![\w.])/(?:work|home/\w+|root|Users/\w+|mnt|tmp/\w*build)/[\w.]")


def repository_files() -> list[Path]:
    """What git tracks or would; in a copy without git, everything that is not built."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = run.stdout.split("\0") if run.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*")]
    built = {".venv", ".git", "node_modules", "static", "__pycache__", "results", "dist", "build"}
    found = (ROOT / name for name in names if name and not built & set(Path(name).parts))
    return [path for path in found if path.is_file()]


def comments(path: Path) -> str:
    """The comments of a Python file; the whole text of any other."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join(token.string for token in tokens if token.type == tokenize.COMMENT)


def test_no_unfinished_work_and_no_path_of_one_machine() -> None:
    faults = []
    for path in repository_files():
        if path.suffix not in TEXT or path == Path(__file__) or path.name == "LICENSE":
            continue
        faults += [(path, m[0]) for m in re.finditer(r"\b(?:TODO|FIXME|XXX|HACK)\b", comments(path))]
        faults += [(path, m[0]) for m in LOCAL_PATH.finditer(path.read_text(encoding="utf-8"))]
    assert faults == []


def test_no_large_file_and_no_weights_are_committed() -> None:
    sizes = {path: path.stat().st_size for path in repository_files()}
    assert {path: size for path, size in sizes.items() if size > 1_500_000} == {}
    assert [path for path in sizes if path.suffix in {".bin", ".pt", ".pkl", ".whl"}] == []


# ---- documents

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = {"", "bash", "sh", "shell", "console"}


def shell_lines(text: str) -> Iterator[str]:
    """Commands in fenced blocks; lines are joined, and prompts, comments and what follows a pipe cut off."""
    for language, block in FENCE.findall(text):
        if language in SHELL:
            for line in block.replace("\\\n", " ").splitlines():
                command = line.strip().removeprefix("$ ").removeprefix("# ")
                yield re.split(r"\s[|>&#]|;|&&", command)[0].strip()


def commands(program: str) -> list[tuple[str, list[str]]]:
    found = []
    for document in DOCUMENTS:
        for line in shell_lines(document.read_text(encoding="utf-8")):
            words = re.sub(r"^(?:[A-Z_]+=\S+\s+)*(?:\.venv/bin/)?", "", line).split()
            if words and words[0] == program:
                found.append((f"{document.name}: {line}", words[1:]))
    return found


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = [(line, word) for line, words in commands("make") for word in words if re.fullmatch(r"[a-z]+", word)]
    assert [line for line, target in asked if target not in targets] == []


def check_command(words: list[str]) -> str:
    """What is wrong with `cutaway WORDS`; "" if nothing. Only names are checked, values are the reader's."""
    import typer.main

    from cutaway.cli.main import app

    command, words = typer.main.get_command(app), [word.strip("[]") for word in words]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    unknown = [w for w in words if re.match(r"--?[a-z]", w) and w.split("=")[0] not in known]
    return f"no option {unknown[0]!r}" if unknown else ""


def test_documented_commands_exist() -> None:
    faults = {line: fault for line, words in commands("cutaway") if (fault := check_command(words))}
    assert faults == {}


def test_unknown_commands_are_noticed() -> None:
    assert check_command(["chat", "model", "--prompt", "x", "--help"]) == ""
    assert check_command(["chatter"]) == "no command 'chatter'"
    assert check_command(["chat", "model", "--no-such-option=3"]) == "no option '--no-such-option=3'"


def outline(path: Path) -> tuple[list[int], list[str]]:
    """Heading levels in order, and the commands in code blocks (comments are translated)."""
    text = path.read_text(encoding="utf-8")
    prose = FENCE.sub("", text)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)]
    return levels, [line for line in shell_lines(text) if line]


def test_both_readmes_say_the_same() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README.zh-CN.md"
    assert outline(english) == outline(chinese)
    assert outline(english)[0], "a README without headings says nothing"


def slug(heading: str) -> str:
    """GitHub's anchor for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_links_in_documents_lead_somewhere() -> None:
    faults = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in DOCUMENTS
        for target in links(document)
        if not leads_somewhere(document, target)
    ]
    assert faults == []


def links(document: Path) -> list[str]:
    """Targets of links and pictures, those on the web left out."""
    prose = FENCE.sub("", document.read_text(encoding="utf-8"))
    found = re.findall(r"\]\(([^)\s]+)[^)]*\)|<img[^>]*src=\"([^\"]+)\"|<a[^>]*href=\"([^\"]+)\"", prose)
    return [target for target in map("".join, found) if not re.match(r"[a-z]+:", target)]


def leads_somewhere(document: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    path = document.parent / name if name else document
    if not path.exists() or not anchor or path.suffix != ".md":
        return path.exists()
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return anchor in map(slug, headings)


def test_documents_name_files_that_exist() -> None:
    """`nn/attention.py` in running text: the end of the path of some file."""
    paths = [f"/{path.relative_to(ROOT).as_posix()}" for path in repository_files()]
    faults = []
    for document in DOCUMENTS:
        prose = FENCE.sub("", document.read_text(encoding="utf-8"))
        for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|sh|ts|svelte|toml|md))`", prose):
            if not any(path.endswith(f"/{name}") for path in paths):
                faults.append(f"{document.relative_to(ROOT)}: {name}")
    assert faults == []


def test_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert project()["license"] == "Apache-2.0"
