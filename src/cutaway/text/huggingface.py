"""tokenizer.json and its companions, in and out (the layout of Hugging Face model directories)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from cutaway.errors import CutawayError, NotFound
from cutaway.files import atomic
from cutaway.text.added import AddedToken
from cutaway.text.bpe import Pair
from cutaway.text.ranking import merges_from_scores
from cutaway.text.recipe import Json, Kind, Recipe

ROLES = ("bos", "eos", "unk", "pad", "cls", "sep", "mask")


def read(directory: str | Path) -> Recipe:
    """The tokenizer of a model directory; CutawayError if there is none or it is broken.

    tokenizer.json is completed by tokenizer_config.json, special_tokens_map.json, chat_template.jinja and
    generation_config.json as far as they exist.
    """
    root = Path(directory)
    path = root / "tokenizer.json"
    if not path.is_file():
        hint = "tokenizer.json and GGUF are read; transformers' save_pretrained can write a tokenizer.json"
        raise NotFound("the model directory has no tokenizer.json", str(root), hint)
    content, config = _load(path), _load(root / "tokenizer_config.json")
    recipe = _recipe(content)
    _add_roles(recipe, _load(root / "special_tokens_map.json") | config)
    _add_stops(recipe, _load(root / "generation_config.json") or _load(root / "config.json"))
    recipe.chat_template = _chat_template(root, config)
    limit = config.get("model_max_length")
    recipe.max_length = int(limit) if isinstance(limit, int | float) and limit < 2**31 else None
    return recipe


def _load(path: Path) -> Json:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CutawayError(f"this is not JSON: {error}", str(path), "fetch the file again") from None
    if not isinstance(content, dict):
        raise CutawayError("this should be a JSON object", str(path), "fetch the file again")
    return content


def _recipe(content: Json) -> Recipe:
    model = content["model"]
    kind: Kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
    if kind not in get_args(Kind):
        what = f"tokenizer model {kind!r} is not supported"
        raise CutawayError(what, "tokenizer.json", f"{', '.join(get_args(Kind))} are")
    vocab, scores = _vocab(model["vocab"])
    options = {k: v for k, v in model.items() if k not in ("type", "vocab", "merges", "dropout")}
    if kind == "Unigram" and model.get("unk_id") is not None:
        options["unk_token"] = model["vocab"][model["unk_id"]][0]
    added = [
        AddedToken(**{k: v for k, v in token.items() if k in AddedToken.__dataclass_fields__})
        for token in content.get("added_tokens") or []
    ]
    merges = _merges(model["merges"]) if kind == "BPE" else None
    recipe = Recipe(kind, vocab, merges, scores, options, added=added)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        setattr(recipe, part, content.get(part))
    return recipe


def _vocab(vocab: Any) -> tuple[dict[str, int], dict[str, float] | None]:
    if isinstance(vocab, dict):
        return {str(token): int(i) for token, i in vocab.items()}, None
    return {token: i for i, (token, _) in enumerate(vocab)}, {token: float(score) for token, score in vocab}


def _merges(merges: Iterable[Any]) -> list[Pair]:
    """Older files write a pair as one string, "Ġ t"."""
    return [(a, b) for a, b in (m.split(" ") if isinstance(m, str) else m for m in merges)]


def _text(token: Any) -> Any:
    return token["content"] if isinstance(token, dict) else token


def _add_roles(recipe: Recipe, names: Json) -> None:
    ids = recipe.vocab | {token.content: token.id for token in recipe.added}
    for role in ROLES:
        name = _text(names.get(f"{role}_token"))
        if name in ids:
            recipe.roles[role] = ids[name]


def _add_stops(recipe: Recipe, generation: Json) -> None:
    for role in ("bos", "eos", "pad"):
        ids = generation.get(f"{role}_token_id")
        ids = [i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)]
        if ids:
            recipe.roles.setdefault(role, ids[0])
        if role == "eos":
            recipe.stop = frozenset(ids)


def _chat_template(root: Path, config: Json) -> str | None:
    """Newer directories keep it in a file of its own; a list in the configuration holds several, by name."""
    own = root / "chat_template.jinja"
    if own.is_file():
        return own.read_text("utf-8")
    template = config.get("chat_template") or _load(root / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default") or next(iter(named.values()), None)
    return template


def write(recipe: Recipe, directory: str | Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, as AutoTokenizer reads them."""
    root = Path(directory)
    files = {
        "tokenizer.json": json.dumps(_content(recipe), ensure_ascii=False),
        "tokenizer_config.json": json.dumps(_config(recipe), ensure_ascii=False, indent=2) + "\n",
    }
    if recipe.chat_template is not None:
        files["chat_template.jinja"] = recipe.chat_template
    for name, text in files.items():
        with atomic(root / name) as path:
            path.write_text(text, "utf-8")


def _content(recipe: Recipe) -> Json:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [vars(token) for token in sorted(recipe.added, key=lambda t: t.id)],
        "normalizer": recipe.normalizer,
        "pre_tokenizer": recipe.pre_tokenizer,
        "post_processor": recipe.post_processor,
        "decoder": recipe.decoder,
        "model": _model(recipe),
    }


def _model(recipe: Recipe) -> Json:
    model = {"type": recipe.kind, **recipe.options}
    if recipe.kind == "Unigram":
        unk, scores = model.pop("unk_token", None), recipe.scores or {}
        ordered = sorted(recipe.vocab, key=recipe.vocab.__getitem__)
        return model | {"unk_id": recipe.vocab.get(unk), "vocab": [[t, scores.get(t, 0.0)] for t in ordered]}
    if recipe.kind == "BPE":
        merges = recipe.merges if recipe.merges is not None else merges_from_scores(recipe)
        return model | {"vocab": recipe.vocab, "merges": merges}
    return model | {"vocab": recipe.vocab}


def _config(recipe: Recipe) -> Json:
    names = recipe.tokens()
    config: Json = {f"{role}_token": names[recipe.roles[role]] for role in ROLES if role in recipe.roles}
    if recipe.max_length:
        config["model_max_length"] = recipe.max_length
    return config | {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
