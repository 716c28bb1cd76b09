"""What clients may ask, as OpenAI names it, with vLLM's further settings (top_k, min_p, structured_outputs ...).

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

from cutaway.engine.constraints.spec import ConstraintSpec
from cutaway.engine.params import SamplingParams
from cutaway.errors import CutawayError

MAX_CHOICES = 16  # n
MAX_STOPS = 16  # stop strings, of at most MAX_STOP characters each
MAX_STOP = 256
MAX_PROMPTS = 64  # prompts of one completions request
MAX_INPUTS = 2048  # inputs of one embeddings request
MAX_ALTERNATIVES = 20  # top_logprobs
MAX_NGRAM = 1024

ANY = None  # whatever the value

ANY_OBJECT = ConstraintSpec.schema({"type": "object"})

Inert = dict[str, tuple[Any, ...] | None]

EVERYWHERE: Inert = {"user": ANY, "safety_identifier": ANY}
GENERATING: Inert = EVERYWHERE | {"request_id": ANY}
COMPLETIONS: Inert = GENERATING | {"suffix": ("",)}
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
Bias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], float],
    expected("an object with token ids as keys and numbers as values"),
]
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


class StructuredOutputs(Body):
    """vLLM's way to say what a reply must be: one of these."""

    json_: Any = Field(None, alias="json", description="a JSON Schema")
    json_object: bool = False
    regex: Utf8 | None = None
    choice: list[Utf8] | None = None
    grammar: Utf8 | None = None
    words: list[Utf8] | None = Field(None, description="all words that the reply may be made of")

    def constraint(self) -> ConstraintSpec | None:
        """Errors: several at once."""
        given = {k: v for k, v in self if v not in (None, False)}
        if len(given) > 1:
            raise CutawayError(f"give one of {', '.join(given)}", "structured_outputs")
        return next((CONSTRAINTS[kind](value) for kind, value in given.items()), None)


CONSTRAINTS: dict[str, Callable[[Any], ConstraintSpec]] = {
    "json_": ConstraintSpec.schema,
    "json_object": lambda _: ANY_OBJECT,
    "regex": ConstraintSpec.regex,
    "choice": ConstraintSpec.choices,
    "grammar": ConstraintSpec.grammar,
    "words": ConstraintSpec.words,
}


class Drawing(Body):
    """How tokens are drawn, whichever API asks. stops: texts that end a reply."""

    model: str
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = Field(0, ge=-1, description="0 and -1 are off")
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = Field(0, ge=0, le=MAX_NGRAM)
    logit_bias: Bias = {}
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="of the first choice; the next one's is one more")
    ignore_eos: bool = False
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Len(0, MAX_STOPS)] = []
    min_tokens: int = 0
    priority: int = Field(0, ge=-100, le=100, description="lower goes first")
    stream: bool = False
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return ()

    @property
    def choices(self) -> int:
        """How many replies are computed for each prompt."""
        return 1

    @property
    def prompt_logprobs(self) -> int | None:
        """How many alternatives to tell for each token of the prompt, None for nothing about it."""
        return None

    @property
    def silent(self) -> bool:
        """Whether nothing but the prompt is wanted."""
        return False

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def params(self, **others: Any) -> SamplingParams:
        """The settings of one sequence; others: those that are not read off here. Errors: one out of range, by name."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            no_repeat_ngram=self.no_repeat_ngram_size,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
            stop=self.stops,
            stop_token_ids=tuple(self.stop_token_ids),
            min_tokens=self.min_tokens,
            prompt_logprobs=self.prompt_logprobs,
            ignore_eos=self.ignore_eos,
            priority=-self.priority,
            **others,
        )


class Sampling(Drawing):
    """What chat and text completions have in common."""

    stop: Stop = []
    n: int = Field(1, ge=1, le=MAX_CHOICES)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def choices(self) -> int:
        return self.n


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


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    inert = COMPLETIONS
    prompt: Prompts
    max_tokens: int = 16
    echo: bool = False
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)

    @property
    def choices(self) -> int:
        return self.best_of or self.n

    @property
    def prompt_logprobs(self) -> int | None:
        return self.logprobs if self.echo else None

    @property
    def silent(self) -> bool:
        return self.echo and self.max_tokens == 0


class EmbeddingRequest(Body):
    """POST /v1/embeddings. dimensions: the first so many numbers of each vector."""

    inert = EVERYWHERE
    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
