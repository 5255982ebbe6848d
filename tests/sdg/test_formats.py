"""HTML, PDF and DOCX are read as people see them; broken ones are left out, never a crash."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import docx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import InputError
from components.sdg.component import SdgConfig
from components.sdg.read.corpus import Corpus
from tests.sdg.reading import read_directory

CONFIG = SdgConfig(file_extensions=".html,.htm,.pdf,.docx,.txt")
HTML = """<!doctype html><html><head><title>Not seen</title><style>p{color:red}</style></head><body>
<script>alert("never")</script><h1>Valves</h1><p>A valve <b>opens</b> and closes.<br>It is made of steel.</p>
<!-- a comment --><ul><li>First step</li><li>Second step</li></ul><table><tr><td>Size</td><td>12 mm</td></tr></table>
<p>Größe and 数 stay as they are.</p></body></html>"""


def read(root: Path, config: SdgConfig = CONFIG) -> Corpus:
    return read_directory(root, config)


def pdf(*pages: str) -> bytes:
    """The smallest PDF with a line of text on each page."""
    objects = ["<</Type/Catalog/Pages 2 0 R>>", "", "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        kids.append(f"{len(objects) + 1} 0 R")
        contents = len(objects) + 2
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents {contents} 0 R/Resources<</Font<</F1 3 0 R>>>>>>"
        )
        objects.append(f"<</Length {len(stream)}>>stream\n{stream}\nendstream")
    objects[1] = f"<</Type/Pages/Kids[{' '.join(kids)}]/Count {len(kids)}>>"
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj{body}endobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = f"trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{len(out)}\n%%EOF"
    return out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode()


def word(path: Path) -> Path:
    document = docx.Document()
    document.add_heading("Pumps", 1)
    document.add_paragraph("A pump moves water from the well to the tank.")
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Power", "40 kW"
    document.add_paragraph("It must never run dry.")
    document.save(path)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_html_is_its_visible_text_in_paragraphs(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.html").write_bytes(HTML.encode(encoding))
    text = read(tmp_path).documents[0].text
    assert "A valve opens and closes." in text
    assert "Größe and 数 stay as they are." in text
    for hidden in ("alert", "color:red", "a comment", "Not seen", "<"):
        assert hidden not in text
    assert text.index("First step") < text.index("Second step") < text.index("12 mm")
    assert "First stepSecond" not in text
    assert "\n\nFirst step" in text


def test_pdf_and_docx_are_read_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("Page one is about gears and their teeth.", "Page two is about oil."))
    word(tmp_path / "b.docx")
    found = {document.source_id: document.text for document in read(tmp_path).documents}
    assert found["a.pdf"].index("gears") < found["a.pdf"].index("oil")
    assert [part in found["b.docx"] for part in ("Pumps", "Power | 40 kW", "never run dry")] == [True] * 3
    assert found["b.docx"].index("well") < found["b.docx"].index("40 kW") < found["b.docx"].index("dry")


def test_formats_are_read_only_when_their_extension_is_enabled(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("A page about gears and their teeth and more."))
    with pytest.raises(InputError, match=r"found 1 \.pdf\): change file_extensions"):
        read(tmp_path, SdgConfig())


def zip_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"\0" * (9 * 2**20))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pdf", b"%PDF-1.4 broken"),
        ("a.pdf", b""),
        ("a.pdf", pdf("")),
        ("a.docx", b"PK\x03\x04 broken"),
        ("a.docx", pdf("not a Word file at all")),
        ("a.docx", zip_bomb()),
        ("a.html", b""),
        ("a.html", b"\0" * 1000),
        ("a.htm", b"<!--" + b"x" * 1000),
    ],
    ids=["pdf", "empty pdf", "scanned pdf", "docx", "pdf as docx", "bomb", "empty html", "NUL", "comment"],
)
def test_what_cannot_be_read_is_left_out_with_a_reason(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "good.txt").write_text("A good document that is long enough to be read by anybody.")
    (tmp_path / name).write_bytes(content)
    config = CONFIG.model_copy(update={"max_file_mib": 1})
    found = read(tmp_path, config)
    assert [document.source_id for document in found.documents] == ["good.txt"]
    assert sum(found.skipped.values()) == 1


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([".html", ".pdf", ".docx", ".txt"]), st.binary(max_size=400), st.integers(0, 10**6))
def test_damaged_files_never_crash(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, noise: bytes, at: int
) -> None:
    root = tmp_path_factory.mktemp("damaged")
    (root / "good.txt").write_text("A good document that is long enough to be read by anybody.")
    whole = {".html": HTML.encode(), ".pdf": pdf("A page about gears and teeth."), ".txt": HTML.encode()}
    content = whole[suffix] if suffix in whole else word(root / "x.docx").read_bytes()
    (root / "x.docx").unlink(missing_ok=True)
    at %= len(content)
    (root / f"a{suffix}").write_bytes(content[:at] + noise + content[at + len(noise) :])
    for document in read(root).documents:
        document.text.encode()  # no lone surrogate
        assert "\0" not in document.text


def test_other_encodings_are_read_when_asked_for(tmp_path: Path) -> None:
    text = "Die Größe der Düse “genau” messen, bevor man sie einbaut. " * 2
    (tmp_path / "a.txt").write_bytes(text.encode("cp1252"))
    with pytest.raises(InputError, match="not UTF-8"):
        read(tmp_path)
    config = CONFIG.model_copy(update={"encoding_fallback": "cp1252"})
    assert read(tmp_path, config).documents[0].text == text
