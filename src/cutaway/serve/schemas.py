"""What clients may ask, as OpenAI names it, with vLLM's top_k, min_p, repetition_penalty, ignore_eos and
chat_template_kwargs.

Nothing is ignored that would change the answer: an unknown field, or a known one that is not supported, is
refused by name. Fields that cannot matter here are listed in tables, with the values for which that is so.
null means absent. Ranges of sampling settings are those of `SamplingParams`, which refuses the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Len
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from cutaway.engine.params import SamplingParams

MAX_CHOICES = 16  # n
MAX_STOPS = 16  # stop strings, of at most MAX_STOP characters each
MAX_STOP = 256
MAX_PROMPTS = 64  # prompts of one completions request
MAX_INPUTS = 2048  # inputs of one embeddings request
MAX_ALTERNATIVES = 20  # top_logprobs

ANY = None  # whatever the value

Inert = dict[str, tuple[Any, ...] | None]

EVERYWHERE: Inert = {"user": ANY, "safety_identifier": ANY}
GENERATING: Inert = EVERYWHERE | {"logit_bias": ({},), "request_id": ANY}
CHAT: Inert = GENERATING | {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ANY,
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": ANY,
    "prediction": (),
    "prompt_cache_key": ANY,
    "prompt_cache_options": ANY,
    "prompt_cache_retention": ANY,
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
COMPLETIONS: Inert = GENERATING | {"echo": (False,), "suffix": ("",)}
# What clients send back with an assistant's earlier message, as they got it.
MESSAGE: Inert = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}


def expected(description: str) -> WrapValidator:
    """One message for a value of several allowed types, instead of one per type."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("type", "must be {description}", {"description": description}) from None

    return WrapValidator(check)


def utf8(value: str) -> str:
    """JSON can spell half a surrogate pair, which no text contains."""
    value.encode()  # a UnicodeEncodeError is a ValueError, which Pydantic reports
    return value


Utf8 = Annotated[str, AfterValidator(utf8)]
Ids = Annotated[list[int], Len(1)]
Text = Annotated[Utf8, Len(1, MAX_STOP)]
Stop = Annotated[
    Text | Annotated[list[Text], Len(0, MAX_STOPS)],
    expected(f"a string or a list of at most {MAX_STOPS} strings, each of 1 to {MAX_STOP} characters"),
]
Prompts = Annotated[
    Utf8 | Annotated[list[Utf8], Len(1, MAX_PROMPTS)] | Ids | Annotated[list[Ids], Len(1, MAX_PROMPTS)],
    expected(f"a string of valid Unicode, a list of token ids, or a list of 1 to {MAX_PROMPTS} of either"),
]
Inputs = Annotated[
    Utf8 | Annotated[list[Utf8], Len(1, MAX_INPUTS)] | Ids | Annotated[list[Ids], Len(1, MAX_INPUTS)],
    expected(f"a string of valid Unicode, a list of token ids, or a list of 1 to {MAX_INPUTS} of either"),
]


class Body(BaseModel):
    """A JSON object without surprises: strict types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)
    inert: ClassVar[Inert] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_inert(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if not cls._is_inert(k, v)} if isinstance(data, dict) else data

    @classmethod
    def _is_inert(cls, name: str, value: Any) -> bool:
        if value is None:
            return name in cls.inert or name in cls.model_fields
        harmless = cls.inert.get(name, ())
        return harmless is ANY or value in harmless


class StreamOptions(Body):
    """include_usage: end the stream with a chunk that counts tokens."""

    inert = {"include_obfuscation": ANY}
    include_usage: bool = False


class Sampling(Body):
    """What chat and text completions have in common."""

    model: str
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = Field(0, ge=-1, description="0 and -1 are off")
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="of the first choice; the next one's is one more")
    stop: Stop = []
    ignore_eos: bool = False
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def params(self, seed: int, max_tokens: int, top_logprobs: int) -> SamplingParams:
        """The settings of one sequence. Errors: a value out of range, by name."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=seed,
            stop=self.stops,
            max_tokens=max_tokens,
            top_logprobs=top_logprobs,
            ignore_eos=self.ignore_eos,
        )


class TextPart(Body):
    """The only kind of content part: text."""

    type: Literal["text"]
    text: Utf8


class Message(Body):
    """One turn. A developer's is rendered as the system's, the name that templates know."""

    inert = MESSAGE
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Utf8 | Annotated[list[TextPart], Len(1)],
        expected('a string, or a list of parts {"type": "text", "text": ...}, of valid Unicode'),
    ]


class ChatRequest(Sampling):
    """POST /v1/chat/completions. Without a maximum, a reply may fill the context."""

    inert = CHAT
    messages: Annotated[list[Message], Len(1)]
    chat_template_kwargs: dict[str, Any] = {}
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    inert = COMPLETIONS
    prompt: Prompts
    max_tokens: int = 16
    best_of: int | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)


class EmbeddingRequest(Body):
    """POST /v1/embeddings. dimensions: only the model's own number."""

    inert = EVERYWHERE
    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
