"""Settings of sdg: what generation may cost, and where paid answers and earlier runs are kept."""

from __future__ import annotations

from pydantic import Field

from components.core.settings import Settings, setting


class Price(Settings):
    """Per million tokens, in any one currency."""

    prompt: float = Field(ge=0)
    completion: float = Field(default=0.0, ge=0)


class BudgetSettings(Settings):
    """Caps on tokens and cost."""

    max_tokens_total: int | None = setting(
        None,
        "Largest number of tokens, prompts included; the stage stops before it exceeds them",
        form=True,
        gt=0,
        affects_result=False,
    )
    max_cost: float | None = setting(
        None,
        "Highest cost in the currency of `prices`; the stage stops before it exceeds it",
        gt=0,
        affects_result=False,
    )
    prices: dict[str, Price] = setting(
        {}, "Per million tokens by model: `{MODEL: {prompt: 0.1, completion: 0.4}}`", affects_result=False
    )


class HistorySettings(Settings):
    """What outlives a run: paid answers, and what earlier runs read and made."""

    ledger_uri: str | None = setting(
        None,
        "Directory, s3:// or gs:// prefix where LLM answers are kept, so that no run pays for one twice",
        form=True,
        affects_result=False,
    )
    history_uri: str | None = setting(
        None,
        "Directory, s3:// or gs:// prefix that recurring runs share: what each run read and produced, the "
        "model that is served, its test set, and without ledger_uri the LLM answers; null for a run on its "
        "own",
        form=True,
        min_length=1,
        affects_result=False,
    )
    skip_unchanged: bool = setting(
        True,
        "With history_uri: end early, and green, if documents and settings of sdg are those of the last "
        "run; false trains again, for instance with other settings of finetune",
        form=True,
        affects_result=False,
    )

    @property
    def answers_uri(self) -> str | None:
        """Where paid answers are kept; None when they are not."""
        return self.ledger_uri or (self.history_uri and f"{self.history_uri.rstrip('/')}/answers")
