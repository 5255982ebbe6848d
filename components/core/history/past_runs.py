"""The artifact ``past_runs``: how the later stages of a run know its place in the history."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from components.core.errors import InputError
from components.core.history.history import History
from components.core.history.records import CorpusChange

RUN_FILE = "run.json"


@dataclass(frozen=True)
class RunContext:
    """This run among the others at ``history_uri``, which is empty for a run without a history.

    ``champion`` is the name of the run whose model is served.
    """

    history_uri: str
    name: str
    corpus: CorpusChange
    champion: str | None = None

    @property
    def history(self) -> History:
        """The history that the run belongs to."""
        return History(self.history_uri)

    def write(self, directory: Path) -> None:
        """Write the artifact to ``directory``."""
        directory.mkdir(parents=True, exist_ok=True)
        content = {
            "uri": self.history_uri,
            "run": self.name,
            "champion": self.champion,
            "started": self.corpus.model_dump(),
        }
        (directory / RUN_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_run_context(directory: Path | None) -> RunContext | None:
    """Read what ``RunContext.write`` wrote.

    Returns None without a directory, and for a run that keeps no history. Raises InputError for another directory.
    """
    if directory is None:
        return None
    try:
        content = json.loads((directory / RUN_FILE).read_text(encoding="utf-8"))
        context = RunContext(content["uri"], content["run"], CorpusChange(**content["started"]), content["champion"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory} is not a past_runs artifact ({error!r}): give the one that sdg wrote") from None
    return context if context.history_uri else None
