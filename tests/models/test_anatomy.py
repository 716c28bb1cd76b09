"""The anatomy against the model itself: tensors, shapes that really pass, sums, code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutaway.models.anatomy import PACKAGE, Anatomist, Node
from cutaway.models.block import Stack, positions_of
from cutaway.models.build import build
from cutaway.models.decoder import EncoderDecoder
from cutaway.models.facts import facts
from cutaway.models.families.table import spec_of
from cutaway.nn.attention import BlockDiagonal
from cutaway.nn.embedding import Embedding
from cutaway.nn.heads import Head
from cutaway.nn.routing import Routing
from kit import twins

NAMES = sorted(twins.ARCHITECTURES)


def model(name: str, device: str = "meta") -> Stack:
    twin = twins.twin(name)
    return build(spec_of(twin.family, twin.config), device)


def nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from nodes(child)


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_held_once_and_everything_adds_up(name: str) -> None:
    made = model(name)
    tree = Anatomist(made, 40, stored=lambda tensor: f"type of {tensor}").draw()
    held = {t.name: (t.shape, t.parameters, t.bytes, t.stored) for n in nodes(tree) for t in n.tensors}
    real = dict(made.named_parameters())
    assert held == {n: (tuple(p.shape), p.numel(), p.nbytes, f"type of {n}") for n, p in real.items()}
    assert sum(len(n.tensors) for n in nodes(tree)) == len(held)
    assert tree.parameters == made.cost.parameters
    assert tree.bytes == 4 * tree.parameters
    assert tree.flops_per_token == made.cost.flops_per_token(40)
    for node in nodes(tree):
        own = sum(t.parameters for t in node.tensors)
        assert node.parameters == own + sum(c.parameters for c in node.children)
        assert node.share == node.parameters / tree.parameters
        assert node.flops_per_token >= sum(c.flops_per_token for c in node.children)


@pytest.mark.parametrize("name", NAMES)
def test_every_module_is_a_node_of_its_class(name: str) -> None:
    made = model(name)
    kinds = {node.id: node.kind for node in nodes(Anatomist(made, 40).draw())}
    held = [name for name, _ in made.named_parameters()]
    holding = {
        path: module
        for path, module in made.named_modules()
        if isinstance(module, Head | Embedding) or any(name.startswith(f"{path}." if path else "") for name in held)
    }
    modules = {path or "model": type(module).__name__ for path, module in holding.items()}
    assert modules.items() <= kinds.items()
    further = {kind for path, kind in kinds.items() if path not in modules}
    assert further <= {"Rope", "Attend", "Head"}
    assert len(kinds) == sum(1 for _ in nodes(Anatomist(made, 40).draw())), "an id comes twice"


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_order_are_those_of_a_real_pass(name: str) -> None:
    """Hooks write down, in the order in which modules finish, what goes in and what comes out."""
    made, tokens = model(name, "cpu"), 9
    passed: list[str] = []
    shapes: dict[str, tuple[str, str]] = {}

    def watch(path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            passed.append(path)
            shapes[path] = (shown(inputs[0]) if inputs else "", shown(output))

        return hook

    for path, module in made.named_modules():
        if path and not isinstance(module, nn.ModuleList | nn.Identity) and "position_bias" not in path:
            module.register_forward_hook(watch(path))
    with torch.no_grad():
        context = BlockDiagonal([tokens])
        if isinstance(made, EncoderDecoder):  # whose source has as many tokens
            memory_MD = made.encode(torch.arange(tokens), [tokens])
            context = BlockDiagonal([tokens], memory_MD=memory_MD, sources=[tokens])
        made(torch.arange(tokens), positions_of([tokens]), context)
    tree = Anatomist(made, tokens).draw()
    said = {node.id: (node.input, node.output) for node in nodes(tree)}
    assert {path: said[path] for path in shapes} == shapes
    order = [path for path in finished(tree) if path in shapes and not path.startswith("embedding.")]
    assert order == [path for path in dict.fromkeys(passed) if not path.startswith("embedding.")]  # some pass twice


def shown(given: Tensor | Routing) -> str:
    tensor = given.chosen_TC if isinstance(given, Routing) else given
    return f"[{', '.join(['T', *map(str, tensor.shape[1:])])}]"


def finished(node: Node) -> Iterator[str]:
    for child in node.children:
        yield from finished(child)
    yield node.id


def test_code_is_where_the_class_is_written() -> None:
    for node in nodes(Anatomist(model("gemma3"), 40).draw()):
        if node.code is None:
            assert node.kind in ("Linear", "Embedding", "ModuleList")
            continue
        lines = (PACKAGE / node.code.path).read_text().splitlines()
        name = {"Rope": "def rotate", "Attend": "def attend"}.get(node.kind, f"class {node.kind}")
        assert lines[node.code.line - 1].lstrip().startswith(f"{name}(")
        assert not lines[node.code.end - 1].isspace()


def test_a_window_bounds_what_attention_costs() -> None:
    tree = Anatomist(model("gemma3"), 40).draw()
    attends = [node for node in nodes(tree) if node.kind == "Attend"]
    windows = [layer.attention.window for layer in model("gemma3").spec.layers]
    assert [node.detail["keys"] for node in attends] == [min(40, window or 40) for window in windows]


def test_a_tied_head_costs_flops_and_no_parameters() -> None:
    tied, own = (Anatomist(model(name), 4).draw().children[-1] for name in ("llama-3", "llama"))
    assert (tied.kind, tied.parameters, tied.detail["tied"]) == ("Head", 0, "embedding.tokens")
    assert (own.kind, own.parameters) == ("Head", 97 * 48)
    assert tied.flops_per_token == own.flops_per_token == 2 * 97 * 48
    assert (tied.input, tied.output) == (own.input, own.output) == ("[R, 48]", "[R, 97]")


def test_the_tree_is_plain_json() -> None:
    tree = Anatomist(model("qwen3"), 4).draw()
    assert json.loads(json.dumps(tree.to_dict()))["children"][0]["id"] == "embedding"


def test_facts_agree_with_the_spec_and_name_what_differs_between_layers() -> None:
    found = {fact.key: fact for fact in facts(model("gemma3").cost, "bfloat16", 30)}
    assert (found["layers"].value, found["heads"].value, found["kv_heads"].value) == (4, 6, 2)
    assert found["weight_bytes"].value == 2 * found["parameters"].value
    assert found["kv_bytes_per_token"].value == 4 * 2 * 2 * 10 * 2
    assert "kv_bytes_per_token" not in {fact.key for fact in facts(model("bert").cost, "float32", 30)}
