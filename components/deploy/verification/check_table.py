"""Results of checks as a table, for people."""

from __future__ import annotations

from collections.abc import Sequence

from components.deploy.verification.checks import Check

_VERDICTS = {True: "passed", False: "FAILED", None: "-"}


def format_table(checks: Sequence[Check]) -> str:
    """Return the checks in columns, for a log or a terminal; the last line counts them."""
    rows = [(_VERDICTS[check.passed], check.name, check.format_figures(), check.limit) for check in checks]
    rows = [("verdict", "check", "found", "wanted"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    return "\n".join([*(line.rstrip() for line in lines), count_verdicts(checks)])


def count_verdicts(checks: Sequence[Check]) -> str:
    """Return how many passed, failed, and could not be decided."""
    by_verdict = [sum(check.passed is verdict for check in checks) for verdict in (True, False, None)]
    return "{} passed, {} failed, {} not decided".format(*by_verdict)


def format_markdown(title: str, checks: Sequence[Check]) -> str:
    """Return the checks as a Markdown table, for a pull request or a ConfigMap."""
    lines = [f"### {title}: {count_verdicts(checks)}", "", "| verdict | check | found | wanted |", "|---|---|---|---|"]
    lines += [
        f"| {_VERDICTS[c.passed]} | {c.name} | {_escape_cell(c.format_figures())} | {_escape_cell(c.limit)} |"
        for c in checks
    ]
    return "\n".join(lines) + "\n"


def _escape_cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
