"""Recurring runs: what earlier runs on the same corpus read and produced, and which model is served now.

Imports core.store and core.artifacts.

A history is a directory, or a prefix of a bucket, with a folder for each run:

    runs/RUN/started.json      sdg: how many documents there are, what is new, whether the run ended here
    runs/RUN/documents.json    sdg: sha256 of each document
    runs/RUN/judged.json       eval: figures and the gate's verdict
    runs/RUN/checkpoint/       eval, when the gate passed: the model
    runs/RUN/eval_data/        eval, when the gate passed: the test set it was judged by
    runs/RUN/served.json       deploy: where the model is served

Every file is written by one stage of one run and never changed by another, so runs at the same time lose nothing. The
champion is the model of the newest run with ``served.json``: a run that fails after training promotes nothing. The
name of a run begins with its time.
"""

from components.core.history.history import History, new_run_name
from components.core.history.past_runs import RunContext, read_run_context
from components.core.history.records import CorpusChange, Promotion, RunRecord, Verdict

__all__ = [
    "CorpusChange",
    "History",
    "Promotion",
    "RunContext",
    "RunRecord",
    "Verdict",
    "new_run_name",
    "read_run_context",
]
