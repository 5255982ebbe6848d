"""Settings of sdg: the endpoints and models of the LLM's roles, how they sample, and how requests are repeated."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from components.core.settings import Settings, setting

ChatRole = Literal["artifact_extraction", "qa_generation", "quality_judge"]
Role = Literal["artifact_extraction", "qa_generation", "quality_judge", "embed"]
ROLES: tuple[Role, ...] = get_args(Role)
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
# Headers that carry credentials: those come from the environment.
_SECRET_HEADERS = {"authorization", "proxy-authorization", "api-key", "x-api-key", "cookie"}


class Provider(Settings):
    """An OpenAI-compatible endpoint. Its key is in the variable ``api_key_env`` or in a file, or there is none."""

    base_url: str
    api_key_env: str | None = Field(default=None, pattern=_VARIABLE)
    api_key_file: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        for name in self.headers:
            if name.lower() in _SECRET_HEADERS:
                raise ValueError(f"headers.{name} would put a secret into the settings: use api_key_env")
        return self


class RoleParameters(Settings):
    """How one role samples; null is the general setting."""

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, gt=0)
    request_timeout: float | None = Field(default=None, gt=0)


class LlmSettings(Settings):
    """Which model takes which role, where it is, and how it samples."""

    llm_base_url: str = setting(
        "https://integrate.api.nvidia.com/v1", "OpenAI-compatible endpoint of the LLM", form=True
    )
    api_key_env: str = setting(
        "NVIDIA_API_KEY", "Environment variable that holds the endpoint's key", pattern=_VARIABLE, affects_result=False
    )
    api_key_file: str | None = setting(
        None, "File that holds the key instead, a mounted Secret for instance", affects_result=False
    )
    artifact_extraction_model: str = setting(
        "nvidia/nemotron-3-nano-30b-a3b", "LLM that extracts what a document is about", form=True
    )
    qa_generation_model: str = setting("nvidia/nemotron-3-nano-30b-a3b", "LLM that writes the pairs", form=True)
    quality_judge_model: str = setting("nvidia/nemotron-3-nano-30b-a3b", "LLM that scores the pairs", form=True)
    embed_model: str = setting("nvidia/llama-3.2-nv-embedqa-1b-v2", "Embedding model that finds duplicate questions")
    artifact_extraction_provider: str = setting("nvidia", "Where that model is: `nvidia` is `llm_base_url`")
    qa_generation_provider: str = setting("nvidia", "The same for the model that writes the pairs")
    quality_judge_provider: str = setting("nvidia", "The same for the model that scores them")
    embed_provider: str = setting("nvidia", "The same for the embedding model")
    providers: dict[str, Provider] = setting(
        {}, "Other endpoints by name: `{mine: {base_url: ..., api_key_env: ..., headers: {...}}}`"
    )
    role_parameters: dict[Role, RoleParameters] = setting(
        {}, "temperature, top_p, max_tokens, request_timeout by role: `{quality_judge: {temperature: 0}}`"
    )
    temperature: float = setting(0.6, "Sampling temperature of the LLM", ge=0)
    top_p: float = setting(0.95, "Nucleus sampling of the LLM", gt=0, le=1)
    max_tokens: int | None = setting(
        None, "Largest number of tokens in one answer; null leaves it to the endpoint", gt=0
    )
    request_timeout: float = setting(120.0, "Seconds for one LLM answer", gt=0, affects_result=False)

    @model_validator(mode="after")
    def _providers_are_known(self) -> Self:
        for role in ROLES:
            name = getattr(self, f"{role}_provider")
            if name != "nvidia" and name not in self.providers:
                raise ValueError(f"{role}_provider = '{name}' is not in providers: add it there")
        if "nvidia" in self.providers:
            raise ValueError("providers.nvidia: set llm_base_url and api_key_env instead")
        return self

    @cached_property
    def models(self) -> dict[Role, str]:
        """The model of each role."""
        return {role: getattr(self, f"{role}_model") for role in ROLES}

    @cached_property
    def parameters(self) -> dict[Role, RoleParameters]:
        """How each role samples: its own values, and the general ones where it has none."""
        general = {name: getattr(self, name) for name in RoleParameters.model_fields}
        specific = {role: self.role_parameters.get(role, RoleParameters()) for role in ROLES}
        return {
            role: RoleParameters(**general | parameters.model_dump(exclude_none=True))
            for role, parameters in specific.items()
        }

    def get_provider(self, role: Role) -> tuple[str, Provider]:
        """Return the name of the provider of ``role``, and where it is."""
        name: str = getattr(self, f"{role}_provider")
        if name != "nvidia":
            return name, self.providers[name]
        return name, Provider(base_url=self.llm_base_url, api_key_env=self.api_key_env, api_key_file=self.api_key_file)


class RequestSettings(Settings):
    """How many requests are under way, and how long one is tried again."""

    max_parallel_requests_for_gen: int = setting(4, "LLM requests in flight", form=True, gt=0, affects_result=False)
    max_retry_wait: float = setting(
        600.0,
        "Longest wait in seconds that the endpoint may ask for; beyond it the stage stops (exit code 75)",
        ge=0,
        affects_result=False,
    )
    max_attempts: int = setting(
        6, "Attempts of one LLM request before its document is given up", gt=0, affects_result=False
    )
