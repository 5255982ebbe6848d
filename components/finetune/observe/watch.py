"""What someone who watches the training is shown: figures of every step, and how well they use the chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.cost import flops_per_token, peak_flops
from components.core.encoder.model import Encoder
from components.finetune.component import FinetuneConfig
from components.finetune.observe.trackers import Trackers, wanted_trackers

_SHOWN = ("loss", "tokens_per_second", "mfu")
_BACKWARD = 2  # times the forward pass; half of it where the weights are frozen and only additions are trained


class Watch:
    """Tells of each step. The first rank speaks, for all."""

    def __init__(
        self, encoder: Encoder, lengths: Sequence[int], config: FinetuneConfig, process_group: ProcessGroup
    ) -> None:
        """``lengths``: tokens of each text of the training data."""
        peak = peak_flops(encoder.device)
        self.peak: float | None = None
        self.chip: str | None = None
        if peak:
            self.peak = peak[0] * process_group.size
            self.chip = f"{self.peak / 1e12:,.0f} TFLOP/s, {peak[1]}"
        passes = 1 + (_BACKWARD / 2 if config.lora_rank else _BACKWARD)
        self.flops_per_token = passes * flops_per_token(encoder.backbone, lengths)
        self._val: dict[str, float] = {}
        wanted = wanted_trackers(config.tensorboard_uri) if process_group.is_main else []
        self._trackers = Trackers(wanted, config.model_dump(mode="json"))

    def utilization(self, tokens_per_second: float) -> float | None:
        """Operations of the model that were done, as a share of what the GPUs could do (MFU); None on a CPU.

        No padding and no repeated passage counts, nor what is computed a second time to save memory.
        """
        return round(tokens_per_second * self.flops_per_token / self.peak, 4) if self.peak else None

    def step(self, figures: Mapping[str, float]) -> None:
        """The figures of an optimizer step, its number ``step`` among them."""
        if "val_ndcg_at_10" in figures:
            self._val = {"val_ndcg_at_10": figures["val_ndcg_at_10"]}
        self._trackers.log(int(figures["step"]), {name: value for name, value in figures.items() if name != "step"})

    def shown(self, figures: Mapping[str, float]) -> dict[str, float]:
        """What the line of progress says of them, beside the newest value on the val split."""
        return {name: figures[name] for name in _SHOWN if name in figures} | self._val

    def close(self, *, complete: bool) -> None:
        """Let all arrive where it is sent."""
        self._trackers.close(complete=complete)
