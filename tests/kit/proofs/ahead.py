"""DeepSeek-V3's block that predicts ahead against that of transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import MtpModel

from cutaway.models.decoder import Decoder
from cutaway.models.families import FAMILIES
from cutaway.models.families.table import spec_of
from cutaway.nn.attention import BlockDiagonal
from cutaway.weights.checkpoint import Checkpoint
from kit import twins
from kit.precision import all_float64
from kit.proofs.models import agree, bound


@cache
def with_block_ahead() -> tuple[Any, MtpModel, dict[str, Tensor]]:
    """The twin, transformers' block that predicts ahead, and all tensors by the names of the published checkpoint."""
    twin = twins.twin("deepseek_v3")
    depth = twin.reference.config.num_hidden_layers
    with all_float64():
        config = copy.deepcopy(twin.reference.config)
        config.num_nextn_predict_layers = 1
        main = type(twin.reference)(config)
        main.load_state_dict(twin.reference.state_dict())
        block = MtpModel(main, 1).eval()
        twins.make_loud(block.layers, seed=9)
    found = dict(twin.state)
    for name, tensor in block.layers.state_dict().items():
        at = f"model.layers.{depth}.{name.removeprefix('0.').removeprefix('mtp_block.')}"
        if at.endswith(("experts.gate_up_proj", "experts.down_proj")):
            for e, both in enumerate(tensor):
                parts = zip(("gate", "up"), both.chunk(2), strict=True) if "gate_up" in at else [("down", both)]
                found |= {f"{at.rpartition('.')[0]}.{e}.{part}_proj.weight": t.clone() for part, t in parts}
        else:
            found[at.replace("post_norm", "shared_head.norm")] = tensor.clone()
    copies = {"embed_tokens": "model.embed_tokens", "shared_head.head": "lm_head"}
    found |= {f"model.layers.{depth}.{a}.weight": found[f"{b}.weight"].clone() for a, b in copies.items()}
    return main, block, found


@cache
def expected() -> Tensor:
    """The reference's logits at every position of a prompt but the last."""
    main, block, _ = with_block_ahead()
    (tokens_T,) = twins.prompts((19,))
    with all_float64(), torch.no_grad():
        base, positions_T = main.get_decoder(), torch.arange(18)
        embedded = base.embed_tokens(tokens_T[1:][None])
        turns = base.rotary_emb(embedded, position_ids=positions_T[None])
        mask = torch.full((18, 18), -torch.inf).triu(1)[None, None]
        ahead_TD = block.layers[0](embedded, base(tokens_T[:-1][None])[0], turns, mask, positions_T[None], None)
        return main.lm_head(ahead_TD)[0]


def ahead() -> float:
    """Read as a checkpoint is; from the model's hidden states and the tokens that follow."""
    main, _, tensors = with_block_ahead()
    family, config = FAMILIES["deepseek_v3"], main.config.to_dict()
    model = Checkpoint(
        path=Path("ahead"),
        family=family,
        spec=spec_of(family, config),
        config=config,
        rows=family.rows,
        shapes={name: tuple(t.shape) for name, t in tensors.items()},
        stored=dict.fromkeys(tensors, "F64"),
        read=lambda name: tensors[name].clone(),
        read_tokenizer=twins.Tokenizerless,
    ).model(torch.float64)
    assert isinstance(model, Decoder)
    (tokens_T,) = twins.prompts((19,))
    positions_T, context = torch.arange(18), BlockDiagonal([18])
    hidden_TD = model(tokens_T[:-1], positions_T, context)
    found_TD, _ = model.look_ahead(hidden_TD, tokens_T[1:], positions_T, context)
    return agree([model.logits(found_TD)], [expected()], bound(torch.float64))


PROOFS: dict[str, Callable[[], float]] = {"ahead deepseek_v3": ahead}
