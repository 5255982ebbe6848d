"""The deploy sequence: release, candidate, verification, and then promotion or roll back."""

from __future__ import annotations

from docs.drawing.svg import Box, Drawing

STEPS = (
    ("release", "model and manifest,", "named by their content"),
    ("candidate", "starts beside the live", "release, gets no traffic"),
    ("verify", "vectors, ranking, limits,", "latency: as promised?"),
    ("canary", "a growing share of requests,", "only with strategy=canary"),
)
PASSED = ("promote", "all traffic to the candidate,", "the old release is kept")
FAILED = ("roll back", "the candidate is removed,", "the old release never stopped")
_WIDTH, _HEIGHT, _GAP, _LEFT = 184, 72, 30, 20


def draw() -> Drawing:
    """Draw the steps from left to right, and the two ends."""
    drawing = Drawing(1100, 262, "A release becomes a candidate, is verified, and is promoted or rolled back")
    boxes = [Box(_LEFT + number * (_WIDTH + _GAP), 30, _WIDTH, _HEIGHT) for number in range(len(STEPS))]
    passed = Box(boxes[-1].right + _GAP + 8, 30, 204, _HEIGHT)
    failed = Box(boxes[2].left - 20, 162, boxes[3].right - boxes[2].left + 40, _HEIGHT)
    for box, step in zip(boxes, STEPS, strict=True):
        drawing.box(box, step)
    drawing.box(passed, PASSED)
    drawing.box(failed, FAILED, style="bad")
    for before, after in zip(boxes, [*boxes[1:], passed], strict=True):
        drawing.arrow((before.right, before.middle[1]), (after.left - 2, after.middle[1]))
    for box in boxes[2:]:
        x = box.middle[0]
        drawing.arrow((x, box.bottom), (x, failed.top - 2), label="fails", at=(x + 22, 138))
    live = Box(_LEFT, 162, boxes[1].right - _LEFT - 40, _HEIGHT)
    drawing.box(live, ("live release", "answers every request until a candidate is promoted"), style="soft")
    drawing.arrow((failed.left, failed.middle[1]), (live.right + 2, live.middle[1]))
    return drawing
