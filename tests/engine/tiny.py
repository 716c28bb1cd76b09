"""Small stand-ins: a byte tokenizer, a random decoder, and one that says what it is told."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from cutaway.engine.engine import Engine
from cutaway.models.decoder import Decoder
from cutaway.models.spec import HeadSpec, LayerSpec, Spec
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.embedding import EmbeddingSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.norms import NormSpec
from cutaway.nn.positions import RopeSpec
from cutaway.text.tokenizer import Tokenizer as Ours

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB = 256 + len(SPECIAL)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@cache
def tokenizer(template: str | None = TEMPLATE) -> Ours:
    """One token per byte: id 65 is not "A", but some byte. Ends turns with <|im_end|>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    with tempfile.TemporaryDirectory() as folder:
        made.save(str(Path(folder) / "tokenizer.json"))
        config = {"eos_token": "<|im_end|>", "chat_template": template, "tokenizer_class": "GPT2Tokenizer"}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
        return Ours.from_dir(folder)


def spec(context: int = 256, window: int | None = None) -> Spec:
    """Two layers, the second with a window if one is given."""
    norm = NormSpec("rms", 1e-6)

    def layer(window: int | None) -> LayerSpec:
        attention = AttentionSpec(6, 2, 10, 10**-0.5, window=window, rope=RopeSpec(100.0))
        return LayerSpec(attention, FeedForwardSpec(53, "silu", True), norm)

    layers = (layer(None), layer(window))
    return Spec("llama", VOCAB, 48, context, EmbeddingSpec(), layers, norm, HeadSpec(tied=False))


def decoder(context: int = 256, window: int | None = None, seed: int = 0) -> Decoder:
    """Every tensor drawn anew and loud, so that a mistake anywhere shows in the logits."""
    model = Decoder(spec(context, window)).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 2 / fan_in**0.5)
    return model


def adapter(folder: Path, spec: Spec, seed: int = 0, rank: int = 4, **config: Any) -> Path:
    """A LoRA adapter for every linear layer of a Llama, loud, in files as PEFT writes them."""
    generator, tensors = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for i, layer in enumerate(spec.layers):
        heads, kept, wide = (
            layer.attention.heads * layer.attention.head_dim,
            layer.attention.kv_heads * layer.attention.head_dim,
            layer.ffn.width,
        )
        outputs = {"self_attn.q": heads, "self_attn.k": kept, "self_attn.v": kept, "self_attn.o": spec.width,
                   "mlp.gate": wide, "mlp.up": wide, "mlp.down": spec.width}  # fmt: skip
        for module, n in outputs.items():
            k = {"self_attn.o": heads, "mlp.down": wide}.get(module, spec.width)
            at = f"base_model.model.model.layers.{i}.{module}_proj.lora"
            tensors[f"{at}_A.weight"] = torch.randn(rank, k, generator=generator) / k**0.5
            tensors[f"{at}_B.weight"] = torch.randn(n, rank, generator=generator) / 2
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    stated = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    return folder


class Told(nn.Module):
    """A decoder that goes on, whatever the prompt, with `script`, then with its last token for ever.

    It knows the script's beginning by the prompt's length, `start`.
    """

    def __init__(self, script: list[int], start: int, context: int = 256) -> None:
        super().__init__()
        self.spec, self.script, self.start = spec(context), script, start
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, tokens_T: Tensor, positions_T: Tensor, context: Any) -> Tensor:
        return positions_T[:, None]

    def logits(self, hidden_RD: Tensor) -> Tensor:
        at = (hidden_RD[:, 0] - self.start + 1).clamp(0, len(self.script) - 1)
        return 30 * nn.functional.one_hot(torch.tensor(self.script)[at], VOCAB).float()


def told(text: str, prompt: str = "?", context: int = 256, end: bool = True) -> Engine:
    """An engine that answers `prompt` with `text`, byte by byte, and an end token."""
    t = tokenizer()
    script = t.encode(text) + [max(t.stop_ids)] * end
    return Engine(cast(Decoder, Told(script, len(t.encode(prompt)), context)), t)
