"""Requests and answers as pydantic models, the types of OpenAPI. A server's limits are checked elsewhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _whole(value: Any) -> Any:
    """Return 3 for 3.0, which JSON does not distinguish."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Whole = BeforeValidator(_whole)
Seed = Annotated[
    int, Field(ge=0, le=2**32 - 1, description="Seed of all noise; by default a new one each time."), _Whole
]
Size = Annotated[
    str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$", description="Width x height in pixels, or auto.")
]
Prompt = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1), _Whole]
Scale = Annotated[float, Field(ge=0, description="Strength of the shift, s.")]
Strength = Annotated[
    Annotated[float, Field(ge=0)] | Literal["auto"],
    Field(description="Lambda, in units of 1 / reward; auto fits it to the rewards of each bank."),
]
GuidanceScale = Annotated[float, Field(description="Scale of classifier-free guidance in both phases.")]
BankId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}-[0-9a-f]{32}$", description="Id of a bank of this server.")]


class Generation(BaseModel):
    """The request to ``POST /v1/images/generations``: OpenAI's fields and ours; others are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    prompt: Prompt
    model: Name | None = None
    n: Count | None = Field(None, description="Images.")
    size: Size | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3), _Whole] | None = None
    seed: Seed | None = None
    bank_size: Count | None = Field(None, description="Lookahead samples.")
    scale: Scale | None = None
    strength: Strength | None = None
    steps: Count | None = Field(None, description="Denoising steps.")
    guidance_scale: GuidanceScale | None = None
    reward: Name | None = None
    bank_id: BankId | None = None
    method: Name | None = None


class Look(BaseModel):
    """The request to ``POST /v1/banks``."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    prompt: Prompt
    n: Count | None = Field(None, description="Lookahead samples.")
    seed: Seed | None = None
    model: Name | None = None
    reward: Name | None = None
    size: Size | None = None
    guidance_scale: GuidanceScale | None = None


class Draw(BaseModel):
    """The request to ``POST /v1/images``."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    bank: BankId
    scale: Scale | None = None
    strength: Strength | None = None
    seed: Seed | None = None
    images: Count | None = None
    steps: Count | None = Field(None, description="Denoising steps.")
    reward: Name | None = Field(
        None, description="Guiding reward; by default the only one that has scored the bank, or else the first."
    )


class Picture(BaseModel):
    """One picture in an answer."""

    b64_json: str
    revised_prompt: None = None
    reward: float | None
    rewards: dict[str, float | None]


class Pictures(BaseModel):
    """The answer of ``POST /v1/images/generations``."""

    created: int
    data: list[Picture]
    output_format: Literal["png"]
    size: str
    id: str
    seed: int
    bank_id: str | None
    notes: list[str]


class Sample(BaseModel):
    """A picture of a job or a bank: its address and its rewards."""

    picture: str
    rewards: dict[str, float | None]


class JobView(BaseModel):
    """A job in its current state."""

    id: str
    object: Literal["job"]
    task: Literal["images", "bank"]
    state: Literal["waiting", "running", "done", "failed", "cancelled", "lost"]
    prompt: str
    seed: int
    position: int
    phase: str
    part: float
    problem: str
    notes: list[str]
    bank_id: str | None
    images: list[Sample]


class BankView(BaseModel):
    """A bank: its members, best first by the guiding reward."""

    id: str
    object: Literal["bank"]
    prompt: str
    seed: int
    images: list[Sample]


class ModelView(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    """The served models, as OpenAI lists them, with the rewards and methods."""

    object: Literal["list"]
    data: list[ModelView]
    rewards: list[str]
    methods: list[str]


class Why(BaseModel):
    """The error, and the field that caused it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Problem(BaseModel):
    """A refusal or a failure."""

    error: Why


class Status(BaseModel):
    """Whether the server is alive, or ready."""

    status: str
    problem: str | None = None


def refusal(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """Return the body of a refusal in OpenAI's format."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}
