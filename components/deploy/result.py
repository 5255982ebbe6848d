"""Result of a target, and the files it is written to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from components.core.kubernetes.resource_kinds import Object
from components.deploy.component import DeployConfig
from components.deploy.local.process import ServerProcess
from components.deploy.objects.render import write_manifests
from components.deploy.verification.checks import Check


@dataclass(frozen=True)
class DeployResult:
    """The service as it is now.

    ``checks`` are of the release before it went live, ``live_checks`` of the service itself; both are empty when
    nothing was verified. ``reindex_required``: vectors that the release before made cannot be compared with this one's.
    ``previous_endpoint`` answers with the release before, when that still runs. ``service`` is the process of the
    target local, ``objects`` are those of the cluster, ``about`` says more for people.
    """

    endpoint: str
    digest: str
    reindex_required: bool
    previous_endpoint: str = ""
    checks: list[Check] = field(default_factory=list)
    live_checks: list[Check] = field(default_factory=list)
    service: ServerProcess | None = None
    objects: list[Object] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    def write(self, config: DeployConfig, directory: Path) -> None:
        """Write ``deployment.json``, ``verification.json`` after checks, and ``manifests/`` when there are objects."""
        directory.mkdir(parents=True)
        about = {
            "endpoint": self.endpoint,
            "model": config.served_model_name,
            "target": config.target,
            "digest": self.digest,
            "previous_endpoint": self.previous_endpoint,
            "reindex_required": self.reindex_required,
            **self.about,
        }
        if self.service:
            about["process"] = self.service.model_dump(mode="json")
        _write_json(directory / "deployment.json", about)
        if self.checks:
            proof = {"checks": [asdict(c) for c in self.checks], "after_switch": [asdict(c) for c in self.live_checks]}
            _write_json(directory / "verification.json", proof)
        if self.objects:
            write_manifests(self.objects, directory / "manifests")

    def figures(self) -> dict[str, float | int | bool | str]:
        """Return output parameters and metrics of the stage."""
        figures: dict[str, float | int | bool | str] = {
            "endpoint": self.endpoint,
            "previous_endpoint": self.previous_endpoint,
            "reindex_required": self.reindex_required,
            "digest": self.digest,
            "checks_passed": sum(check.passed is True for check in self.checks),
            "checks_skipped": sum(check.passed is None for check in self.checks),
        }
        for check in self.live_checks:
            if check.name == "cosine to fine-tuned":
                figures |= {"served_mean_cosine": check.figures["mean"], "served_min_cosine": check.figures["min"]}
        return figures


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
