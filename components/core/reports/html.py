"""Reports as one self-contained HTML page: everything escaped, no script, nothing fetched, light and dark."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

# A page from an artifact store is shown inside the Kubeflow UI: it may style itself and do nothing else.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_VOID = ("meta", "br")
# Characters that no HTML text may hold; a reader shows U+FFFD in their place.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Markup(str):
    """Text that is HTML already; every other text is escaped."""


def escape(text: object) -> Markup:
    """Return ``text`` as HTML, for content and for quoted attributes."""
    return text if isinstance(text, Markup) else Markup(html.escape(_FORBIDDEN.sub("\ufffd", str(text)), quote=True))


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """Return one element. ``class_`` is the attribute class, ``text_anchor`` is text-anchor; None leaves one out.

    >>> element("p", "1 < 2", class_="note")
    '<p class="note">1 &lt; 2</p>'
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{named}>")
    return Markup(f"<{tag}{named}>{join(children)}</{tag}>")


def join(parts: Iterable[object], separator: str = "") -> Markup:
    """Join ``parts``, escaped where they are text."""
    return Markup(separator.join(escape(part) for part in parts))


def quoted(text: str, limit: int | None = None) -> Markup:
    """Quote text, cut after a word within ``limit`` characters, in its own writing direction."""
    if limit is None or len(text) <= limit:
        return element("bdi", text)
    return element("bdi", (text[:limit].rsplit(" ", 1)[0].rstrip() or text[:limit]) + " …")


def page(title: str, *body: object) -> str:
    """Return a whole document."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(_STYLE)),
    )
    return f'<!doctype html>\n<html lang="en">\n{head}\n{element("body", element("main", *body))}\n</html>\n'


def section(title: str, *body: object) -> Markup:
    """Return a part of the page under a heading."""
    return element("section", element("h2", title), *body)


def table(header: Sequence[object], rows: Sequence[Sequence[object]], *, text_columns: int = 1) -> Markup:
    """Return a table whose first ``text_columns`` columns are text and whose others are figures."""

    def row(tag: str, cells: Sequence[object]) -> Markup:
        return element(
            "tr", *(element(tag, cell, class_=None if i < text_columns else "figure") for i, cell in enumerate(cells))
        )

    head = element("thead", row("th", header))
    return element("div", element("table", head, element("tbody", *(row("td", r) for r in rows))), class_="scroll")


def tiles(*items: tuple[str, object, str]) -> Markup:
    """Show large figures side by side: (label, value, note)."""
    return element(
        "div",
        *(
            element(
                "div",
                element("div", label, class_="label"),
                element("div", value, class_="value"),
                element("div", note, class_="note"),
                class_="tile",
            )
            for label, value, note in items
        ),
        class_="tiles",
    )


def facts(items: Iterable[tuple[str, object]]) -> Markup:
    """List names and values, one pair a line."""
    return element("dl", *(join((element("dt", name), element("dd", value))) for name, value in items))


_STYLE = """
:root{--paper:#fff;--panel:#f6f7f9;--ink:#1b2430;--soft:#5b6675;--line:#dfe3e8;--good:#1a7f4b;--bad:#b3372f;
--s0:#b6bec9;--s1:#6c8ebf;--s2:#1f7a5c;--s3:#b9772c;--s4:#8a63b8}
@media screen and (prefers-color-scheme:dark){:root{--paper:#12171d;--panel:#1a2129;--ink:#e4e9ef;--soft:#98a4b3;
--line:#2c3641;--good:#58c48d;--bad:#f0857c;--s0:#525d6b;--s1:#7fa3d6;--s2:#4fbf94;--s3:#dda05a;--s4:#b593e0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:1040px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px}
h2{font-size:18px;margin:40px 0 12px;padding-bottom:6px;border-bottom:1px solid var(--line)}
h3{font-size:15px;margin:20px 0 4px}
p{margin:0 0 12px;max-width:78ch}
ul{margin:0 0 12px;padding-left:20px}
dl+p,.scroll+p,figure+.scroll{margin-top:14px}
.soft,.note,.label{color:var(--soft)}
.good{color:var(--good)}.bad{color:var(--bad)}
.verdict{border-left:4px solid;padding:12px 16px;margin:20px 0;background:var(--panel);border-radius:0 6px 6px 0}
.verdict strong{font-size:17px}
.verdict ul{margin:6px 0 0;color:var(--ink)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(160px,1fr));gap:12px;margin:20px 0}
.tile{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:14px 16px}
.tile .label,.tile .note{font-size:13px}
.tile .value{font-size:26px;font-weight:600;font-variant-numeric:tabular-nums;line-height:1.3}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:24px;margin-bottom:20px}
figure{margin:0;max-width:560px}figcaption{font-weight:600;margin-bottom:8px}
svg{display:block;width:100%;height:auto;font:11px system-ui,sans-serif}
svg text{fill:var(--soft)}svg text.bar{fill:var(--ink)}
svg .grid{stroke:var(--line)}
.s0{fill:var(--s0)}.s1{fill:var(--s1)}.s2{fill:var(--s2)}.s3{fill:var(--s3)}.s4{fill:var(--s4)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 12px;padding:0;list-style:none;font-size:13px}
.legend svg{display:inline-block;width:11px;height:11px;margin-right:6px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;min-width:min(100%,560px);font-size:14px}
th,td{padding:5px 12px 5px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);white-space:nowrap}
.figure{text-align:right;padding-right:0;padding-left:20px;font-variant-numeric:tabular-nums;white-space:nowrap}
td strong{font-weight:650}
tbody tr:hover{background:var(--panel)}
td .under{display:block;color:var(--soft);font-size:13px}
bdi{overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:minmax(160px,max-content) 1fr;gap:4px 24px;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
code{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--panel);padding:1px 4px;
border-radius:3px;white-space:pre-wrap}
@media print{@page{margin:14mm}body{font-size:11px;print-color-adjust:exact;-webkit-print-color-adjust:exact}
main{max-width:none;padding:0}h1{font-size:21px}h2{font-size:15px;margin-top:24px}table{font-size:10.5px}
.legend,td .under,.tile .label,.tile .note{font-size:10px}
.tiles{grid-template-columns:repeat(4,1fr)}.tile .value{font-size:19px}.charts{grid-template-columns:1fr 1fr}
h2,h3,.legend{break-after:avoid}tr,figure,.tile,.verdict,dt,dd{break-inside:avoid}th,td{padding-top:3px;padding-bottom:3px}
.figure{padding-left:12px}.scroll{overflow:visible}}
"""
