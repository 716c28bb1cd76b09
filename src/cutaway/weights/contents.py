"""What belongs to a model: which files are taken from a source, and where the model in a folder is.

Weights are safetensors or GGUF. Pickle (`.bin`, `.pt`, `.ckpt`) is never taken: opening one can run any code.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from cutaway.errors import CutawayError, NotFound

WEIGHTS = ("*.safetensors", "*.gguf")
WANTED = (
    *WEIGHTS,
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "chat_template.*",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
LICENSES = ("LICENSE*", "NOTICE*", "*_TERMS*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Like a shell's glob: a star does not reach into folders."""
    path = PurePosixPath(name)
    return any(
        fnmatchcase(name, pattern) for pattern in patterns if len(path.parts) == len(PurePosixPath(pattern).parts)
    )


def is_weights(path: str) -> bool:
    return _matches(PurePosixPath(path).name, WEIGHTS)


def is_license(name: str) -> bool:
    return _matches(name, LICENSES)


def is_wanted(path: str) -> bool:
    """Whether a file, named relative to the model's folder, is taken."""
    return _matches(path, WANTED) or is_license(path)


def choose(names: list[str], pick: str = "", where: str = "") -> list[str]:
    """Of all files of a repository, those to fetch: the safetensors model, or one GGUF of several.

    pick: part of a GGUF's name ("Q4_K_M"), ignoring case; needed where there are several and no safetensors.
    Raises NotFound if there is nothing to take, CutawayError if it is not clear what.
    """
    wanted = [name for name in names if is_wanted(name)]
    ggufs = [name for name in wanted if name.endswith(".gguf")]
    tensors = [name for name in wanted if name.endswith(".safetensors")]
    if not ggufs and not tensors:
        pickled = " (only pickled weights, which Cutaway does not open)" if _pickled(names) else ""
        raise NotFound(f"holds no safetensors or GGUF file{pickled}", where)
    if tensors and not pick:
        return [name for name in wanted if name not in ggufs]
    matching = [name for name in ggufs if pick.lower() in name.lower()]
    if len(matching) != 1:
        what = f"{len(matching)} GGUF files match {pick!r}, of: {', '.join(ggufs) or 'none'}"
        raise CutawayError(what, where, f"add a part of one name after a colon, as in {where}:Q4_K_M")
    return [name for name in wanted if not is_weights(name)] + matching


def model_in(folder: Path, where: str = "") -> Path:
    """The folder itself if it holds config.json and safetensors, else its only GGUF file.

    where: what errors call the folder, if not by its path. Raises NotFound that says what is missing.
    """
    where = where or str(folder)
    tensors, ggufs = sorted(folder.glob("*.safetensors")), sorted(folder.glob("*.gguf"))
    if tensors and (folder / "config.json").is_file():
        return folder
    if len(ggufs) == 1:
        return ggufs[0]
    if ggufs:
        raise NotFound(f"holds {len(ggufs)} GGUF files", where, f"name one of them, such as {ggufs[0].name}")
    if tensors:
        raise NotFound("holds safetensors but no config.json", where, "put the model's config.json beside them")
    if _pickled([path.name for path in folder.iterdir()]):
        hint = "save it as safetensors with transformers' save_pretrained, or pull a version that is"
        raise NotFound("holds only pickled weights, which Cutaway does not open", where, hint)
    raise NotFound("holds no model", where, "a model is a .gguf file, or config.json with *.safetensors")


def _pickled(names: list[str]) -> bool:
    return any(_matches(PurePosixPath(name).name, PICKLES) for name in names)
