"""E-books: what is read of good ones; bad ones end in InputError and in nothing else."""

from __future__ import annotations

import random
import struct
import zipfile
from pathlib import Path

import pytest

from mlx_higgs.narrate import epub
from mlx_higgs.narrate.epub import Chapter, archive
from mlx_higgs.narrate.epub.page import links, sections
from mlx_higgs.types import InputError

CONTAINER = """<?xml version="1.0"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="OEBPS/book.opf"
media-type="application/oebps-package+xml"/></rootfiles>
</container>"""
PAGE = """<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops">
<head><title>Book</title><style>p {{ color: red }}</style></head><body>{}</body></html>"""
XHTML = "application/xhtml+xml"
Files = dict[str, str | bytes]


def opf(*pages: str, extra: str = "", toc: str = "", linear: str = "") -> str:
    items = "".join(
        f'<opf:item id="i{n}" href="{page}" media-type="{XHTML}"/>' for n, page in enumerate(pages)
    )
    refs = "".join(f'<opf:itemref idref="i{n}"{linear}/>' for n in range(len(pages)))
    return (
        '<?xml version="1.0"?><opf:package xmlns:opf="http://www.idpf.org/2007/opf">'
        f"<opf:manifest>{items}{extra}</opf:manifest><opf:spine{toc}>{refs}</opf:spine></opf:package>"
    )


def book(folder: Path, files: Files, **changes: str | bytes | None) -> Path:
    """An EPUB of ``files``, OEBPS/ before their names; ``changes`` replace or remove entries."""
    path = folder / "book.epub"
    entries = {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER}
    entries |= {f"OEBPS/{name}": content for name, content in files.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in (entries | changes).items():
            if content is not None:
                out.writestr(name, content)
    return path


def two_chapters(extra: str = "", toc: str = "") -> Files:
    return {
        "book.opf": opf("b.xhtml", "a.xhtml", extra=extra, toc=toc),
        "a.xhtml": PAGE.format("<h1>Second</h1><p>Then it ended.</p>"),
        "b.xhtml": PAGE.format(
            "<h2>First <i>of all</i></h2><p>It&nbsp;began\n  slowly.</p><p>Ok.</p>"
        ),
    }


NAV_ITEM = f'<opf:item id="nav" href="nav/toc.xhtml" media-type="{XHTML}" properties="x nav"/>'
NCX_ITEM = '<opf:item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>'
NAV = PAGE.format(
    '<nav epub:type="page-list"><a href="../b.xhtml">12</a></nav><nav epub:type="toc"><ol>'
    '<li><a href="../b.xhtml">The  <b>Start</b></a></li>'
    '<li><a href="../a.xhtml">The End &amp; all</a></li></ol></nav>'
)
NCX = """<?xml version="1.0"?><!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN"
 "http://www.daisy.org/z3986/2005/ncx-2005-1.dtd"><ncx><docTitle><text>Book</text></docTitle><navMap>
<navPoint><navLabel><text>One</text></navLabel><content src="b.xhtml"/>
<navPoint><navLabel><text>Two</text></navLabel><content src="a.xhtml#x"/></navPoint></navPoint>
</navMap></ncx>"""


# -- books ----------------------------------------------------------------------------------------


def test_chapters_follow_the_spine_and_are_named_by_their_headings(tmp_path):
    assert epub.read(book(tmp_path, two_chapters())) == [
        Chapter("First of all", "First of all\n\nIt began slowly.\n\nOk."),
        Chapter("Second", "Second\n\nThen it ended."),
    ]


def test_titles_of_epub_3_come_from_the_navigation_document(tmp_path):
    files = two_chapters(NAV_ITEM + NCX_ITEM) | {"nav/toc.xhtml": NAV, "toc.ncx": NCX}
    assert [one.title for one in epub.read(book(tmp_path, files))] == ["The Start", "The End & all"]


def test_titles_of_epub_2_come_from_the_ncx(tmp_path):
    files = two_chapters(NCX_ITEM, ' toc="ncx"') | {"toc.ncx": NCX}
    files["a.xhtml"] = PAGE.format("<p>Still one.</p><h1 id='x'>Second</h1><p>End.</p>")
    assert [(one.title, one.text[-10:]) for one in epub.read(book(tmp_path, files))] == [
        ("One", "Still one."),
        ("Two", "cond\n\nEnd."),
    ]


def test_sections_of_a_document_that_is_named_as_a_whole_are_no_chapters(tmp_path):
    nav = NAV.replace("</ol>", '<li><a href="../a.xhtml#s">A section</a></li></ol>')
    files = two_chapters(NAV_ITEM) | {"nav/toc.xhtml": nav}
    files["a.xhtml"] = PAGE.format("<p>Before.</p><h2 id='s'>A section</h2><p>After.</p>")
    assert [one.title for one in epub.read(book(tmp_path, files))] == ["The Start", "The End & all"]


def test_a_book_of_one_document_is_divided_at_its_anchors(tmp_path):
    files: Files = {
        "book.opf": opf("a.xhtml", extra=NAV_ITEM.replace("nav/", "")),
        "toc.xhtml": PAGE.format(
            '<nav epub:type="toc"><a href="a.xhtml">Title</a><a href="https://x.y/">Elsewhere</a>'
            '<a href="a.xhtml#c1">I</a><a href="a.xhtml#c%202">II</a></nav>'
        ),
        "a.xhtml": PAGE.format('Title<p id="c1">One.</p><h1><a id="c 2"/>Two</h1>Three'),
    }
    assert epub.read(book(tmp_path, files)) == [
        Chapter("Title", "Title"),
        Chapter("I", "One."),
        Chapter("II", "Two\n\nThree"),
    ]


def test_documents_without_a_title_go_on_with_the_chapter_before(tmp_path):
    files = two_chapters(NAV_ITEM) | {"nav/toc.xhtml": NAV.replace("a.xhtml", "b.xhtml#x")}
    files["a.xhtml"] = PAGE.format("<p>More.</p>")
    (only,) = epub.read(book(tmp_path, files))
    assert only.title == "The Start"
    assert only.text.endswith("Ok.\n\nMore.")


def test_what_is_beside_the_text_is_not_a_chapter(tmp_path):
    files = two_chapters()
    files["a.xhtml"] = PAGE.format('<img src="cover.png"/><svg><text>Cover</text></svg>')
    assert len(epub.read(book(tmp_path, files))) == 1
    files["book.opf"] = opf("b.xhtml", linear=' linear="no"')
    with pytest.raises(InputError, match="has no pages to be read"):
        epub.read(book(tmp_path, files))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1", "windows-1252"])
def test_encodings_are_what_the_document_says(tmp_path, encoding: str):
    files = two_chapters()
    name = encoding.removesuffix("-sig")
    page = PAGE.format("<p>Café “à la carte”</p>" if "1252" in encoding else "<p>Café à la</p>")
    files["a.xhtml"] = page.replace('encoding="utf-8"', f'encoding="{name}"').encode(encoding)
    assert epub.read(book(tmp_path, files))[1].text.startswith("Café ")


def test_names_are_found_however_they_are_written(tmp_path):
    files = two_chapters() | {"book.opf": opf("k%C3%A9 1.xhtml", "./x/../a.xhtml")}
    files["ké 1.xhtml"] = files["b.xhtml"]
    assert len(epub.read(book(tmp_path, files))) == 2


# -- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("a<br/>b<p>c", "a\nb\n\nc"),
        ("<p>x<script>if (a < b) '<p>no'</script>y<STYLE>z</STYLE></p>", "xy"),
        (
            "<p>caf&eacute; &#233;&#xe9; &amp;amp; &unknown; a < b</p>",
            "café éé &amp; &unknown; a < b",
        ),
        ("so\u00adft\u200b  hy\u00a0phen", "soft hy phen"),
        ('Said<a epub:type="noteref" href="#n">here</a>.', "Said."),
        (
            'Said<sup><a href="n.xhtml#n1">[12]</a></sup>. <a href="#c">Chapter 2</a>',
            "Said. Chapter 2",
        ),
        ('x<aside role="doc-footnote"><p>Note</p><aside>n</aside></aside>y', "x\n\ny"),
        ('a <span epub:type="pagebreak" title="9">9</span>b', "a b"),
        ('a<span epub:type="pagebreak"/>b', "ab"),
        ("<ruby>漢<rp>(</rp><rt>かん</rt></ruby>字", "漢字"),
        ("<!-- <p>no --> yes <!-- never ends <p>", "yes"),
        ("<![CDATA[a <b> &amp;]]> c", "a <b> &amp; c"),
        ('<p hidden="">x</p><p alt="so hidden it is" class="hidden">y</p>', "y"),
        ("<head><title>t<body>kept", "kept"),
        ("<li>a<li>b<td>c</td>", "a\n\nb\n\nc"),
        ("1 < 2 <3 <", "1 < 2 <3 <"),
        (f"&#{'9' * 5000};", "\ufffd"),
        ("a&#0;b&#x1F;c\x85\x00d", None),
    ],
)
def test_the_words_of_a_page(page: str, text: str | None):
    (section,) = sections(page)
    if text is not None:
        assert section.text == text
    assert not any(ord(char) < 32 and char != "\n" for char in section.text)


def test_links_are_those_of_the_contents():
    assert links(NAV) == [("../b.xhtml", "The Start"), ("../a.xhtml", "The End & all")]
    assert links('<a href="x&amp;y">z</a>') == [("x&y", "z")]


@pytest.mark.parametrize(
    "part",
    ["<", "<!--", "<![CDATA[", "<script>", "<a ", "<a b='", "&#", "<a b", "<!x[", "</", "<p id="],
)
def test_hostile_pages_take_no_longer_than_long_ones(part: str):
    """A blink: a search to the end of the page at each of these parts would be felt."""
    page = part * 20_000
    sections(page, ["x"])
    links(page)
    sections(f"<a {part * 20_000}>", ["x"])


# -- bad books ------------------------------------------------------------------------------------


def refused(path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        epub.read(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("algorithm", "readable"),
    [
        ("http://www.idpf.org/2008/embedding", True),
        ("http://www.w3.org/2001/04/xmlenc#aes256-cbc", False),
    ],
)
def test_protected_books_are_refused_and_obfuscated_fonts_are_not(tmp_path, algorithm, readable):
    encryption = (
        '<encryption xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptedData>'
        f'<enc:EncryptionMethod Algorithm="{algorithm}"/></enc:EncryptedData></encryption>'
    )
    path = book(tmp_path, two_chapters(), **{"META-INF/encryption.xml": encryption})
    if readable:
        assert len(epub.read(path)) == 2
    else:
        refused(path, r"protected \(DRM\)")


@pytest.mark.parametrize(
    "href", ["../../etc/passwd", "/etc/passwd", "..%2F..%2Fx", "a\\b.xhtml", "%00", "../../../x#y"]
)
def test_paths_out_of_the_book_are_refused(tmp_path, href: str):
    refused(book(tmp_path, two_chapters() | {"book.opf": opf(href)}), "points out of itself")
    container = CONTAINER.replace("OEBPS/book.opf", "../book.opf")
    path = book(tmp_path, two_chapters(), **{"META-INF/container.xml": container})
    refused(path, "points out of itself")


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize("name", ["META-INF/container.xml", "OEBPS/book.opf", "OEBPS/toc.ncx"])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (LAUGHS + "<x>&b;</x>", "declares entities"),
        ('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>', "declares entities"),
        ('<!DOCTYPE x [<!ENTITY % a SYSTEM "http://localhost/x"> %a;]><x/>', "declares entities"),
        ("<a>" * 100_000 + "</a>" * 100_000, "nested too deeply"),
        ("<a><b></a>", "is not XML"),
        ("", "is not XML"),
        ("\0\1\2", "is not XML"),
        (b"\xff\xfe\x00", "is not utf-16"),
        (b"<a>\xe9</a>", "is not utf-8"),
        ('<?xml version="1.0" encoding="zip"?><a/>', "unknown encoding"),
    ],
)
def test_xml_that_attacks_or_is_none_is_refused(tmp_path, name, content, match):
    files = two_chapters(NCX_ITEM) | {"toc.ncx": NCX}
    refused(book(tmp_path, files, **{name: content}), match)


def test_no_entity_of_a_page_is_expanded(tmp_path):
    files = two_chapters()
    files["a.xhtml"] = LAUGHS + "<html><body><p>&b; said</p></body></html>"
    assert epub.read(book(tmp_path, files))[1].text.endswith("&b; said")


def test_bombs_are_refused_while_they_are_read(tmp_path, monkeypatch):
    files = two_chapters()
    files["a.xhtml"] = b"<p>" + b" " * archive.MAX_ENTRY
    path = book(tmp_path, files)
    assert path.stat().st_size < 50_000
    refused(path, "too large: OEBPS/a.xhtml")
    monkeypatch.setattr(archive, "MAX_BOOK", 700)
    refused(book(tmp_path, two_chapters()), "too large: all its text")


def test_sizes_that_lie_are_not_believed(tmp_path):
    """A list of entries that says 10 bytes where 9 million follow."""
    path = book(tmp_path, two_chapters() | {"a.xhtml": b" " * (archive.MAX_ENTRY + 9)})
    data = path.read_bytes().replace(
        struct.pack("<L", archive.MAX_ENTRY + 9), struct.pack("<L", 10)
    )
    path.write_bytes(data)
    refused(path, "is damaged|too large")


def test_lists_of_entries_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_LIST", 100)
    refused(book(tmp_path, two_chapters()), "more entries than a book can have")
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)
    (tmp_path / "zip64.epub").write_bytes(b"PK\6\7" + b"\0" * 16 + end)
    refused(tmp_path / "zip64.epub", "more entries than a book can have")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, method: int):
    """Only deflate can be stopped at a size."""
    path = book(tmp_path, two_chapters(), **{"OEBPS/a.xhtml": None})
    with zipfile.ZipFile(path, "a", method) as out:
        out.writestr("OEBPS/a.xhtml", "x" * 100)
    refused(path, "compression that EPUB does not allow")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"META-INF/container.xml": None}, "no META-INF/container.xml"),
        ({"META-INF/container.xml": "<container/>"}, "names no package"),
        ({"OEBPS/book.opf": None}, "has no OEBPS/book.opf"),
        ({"OEBPS/a.xhtml": None}, "has no OEBPS/a.xhtml"),
        ({"OEBPS/book.opf": "<package/>"}, "has no pages to be read"),
        ({"OEBPS/book.opf": '<p><itemref idref="x"/></p>'}, "x is to be read, but not listed"),
        ({"OEBPS/a.xhtml": "<p>", "OEBPS/b.xhtml": "* * *"}, "holds no text"),
        ({"OEBPS/a.xhtml": b"PK\3\4\xff\xfe nested"}, "is not utf-8"),
    ],
)
def test_what_is_missing_is_named(tmp_path, changes, match: str):
    refused(book(tmp_path, two_chapters(), **changes), match)


def test_other_files_are_no_books(tmp_path):
    refused(tmp_path / "none.epub", "does not exist")
    refused(tmp_path, "does not exist")
    refused(Path("nul\0.epub"), "cannot be read|does not exist")
    (tmp_path / "empty.epub").write_bytes(b"")
    refused(tmp_path / "empty.epub", "is no EPUB")
    (tmp_path / "text.epub").write_text("Once upon a time.")
    refused(tmp_path / "text.epub", "is no EPUB")
    (tmp_path / "short.epub").write_bytes(b"PK\5\6")
    refused(tmp_path / "short.epub", "is no EPUB")


def corrupted(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at, size = rng.randrange(len(out) + 1), rng.randint(0, 12)
        new = rng.choice([rng.randbytes(size), b"\xff" * size, b"", b"<", b"&", b"\0", b"../"])
        out[at : at + rng.choice([0, len(new), size])] = new
    return bytes(out)


@pytest.mark.parametrize("inside", [False, True], ids=["the archive", "its entries"])
def test_corrupted_books_end_in_input_error_or_are_read(tmp_path, seed: int, inside: bool):
    rng = random.Random(seed)
    files = two_chapters(NAV_ITEM + NCX_ITEM) | {"nav/toc.xhtml": NAV, "toc.ncx": NCX}
    whole = book(tmp_path, files).read_bytes()
    read = refusals = 0
    for _ in range(200):
        path = tmp_path / "bad.epub"
        if inside:
            name = rng.choice(list(files))
            entry = corrupted(str(files[name]).encode(), rng)
            path = book(tmp_path, files, **{f"OEBPS/{name}": entry})
        else:
            path.write_bytes(corrupted(whole, rng))
        try:
            read += bool(epub.read(path))
        except InputError:
            refusals += 1
    assert read + refusals == 200
    assert refusals > 20
