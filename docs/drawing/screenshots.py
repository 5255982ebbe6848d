"""Pictures of the two HTML reports of a run, taken by Chromium without a window."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

# Name of the picture, the report below the folder of a run, and width and height of what is shown.
REPORTS = (
    ("evaluation-report.png", "report.html", 1000, 784),
    ("training-report.png", "training_report.html", 1000, 880),
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
_COLOURS = 48


def find_problem(work: Path) -> str:
    """Return what is missing to take the pictures of the run in ``work``; nothing when all is there."""
    if not _browser():
        return f"Chromium is needed (one of {', '.join(BROWSERS)}; Debian: apt-get install chromium)"
    missing = [str(work / report) for _, report, _, _ in REPORTS if not (work / report).is_file()]
    return f"{', '.join(missing)}: run make demo first, or name another run with WORK=" if missing else ""


def take(work: Path, out: Path) -> None:
    """Write a picture of each report of the run in ``work``."""
    for name, report, width, height in REPORTS:
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "picture.png"
            size = [f"--window-size={width},{height}", f"--screenshot={picture}"]
            command = [_browser(), *_OPTIONS, f"--user-data-dir={folder}/profile", *size]
            address = (work / report).resolve().as_uri()
            subprocess.run([*command, address], check=True, capture_output=True, timeout=120)
            with Image.open(picture) as image:
                small = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
                small.save(out / name, optimize=True)


def _browser() -> str:
    return next((found for name in BROWSERS if (found := shutil.which(name))), "")
