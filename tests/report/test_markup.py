import html.parser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.report.markup import Html, element, escape, file_name, join, relative_link


class Collector(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(), st.text())
def test_text_never_becomes_markup(text: str, title: str) -> None:
    collector = Collector()
    page = element("p", text, title=title)
    page.encode("utf-8")
    collector.feed(page)
    collector.close()
    assert [tag for tag, _ in collector.tags] == ["p"]
    assert list(collector.tags[0][1]) == ["title"]
    if text.isprintable():
        assert collector.text == text


def test_names_that_are_not_utf8_can_be_written() -> None:
    assert escape("a\udc80\x00b") == "a\ufffd\ufffdb"


def test_finished_markup_stays() -> None:
    inner = element("b", "x")
    assert element("p", inner, None, ["&", [inner]]) == "<p><b>x</b>&amp;<b>x</b></p>"
    assert isinstance(join([inner]), Html)


def test_attributes() -> None:
    made = element("input", data_x=1, class_="a b", hidden=True, title=None, checked=False)
    assert made == '<input data-x="1" class="a b" hidden>'


def test_file_names_are_isolated() -> None:
    assert file_name("\u202egpj.x") == '<bdi class="name">\u202egpj.x</bdi>'


@pytest.mark.parametrize(
    ("path", "link"),
    [
        ("exports/scene.ply", "./exports/scene.ply"),
        ("exports/sparse/0", "./exports/sparse/0"),
        ("a b/ö?#%.png", "./a%20b/%C3%B6%3F%23%25.png"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
        ("\udc80.ply", "./%3F.ply"),
        ("/etc/passwd", None),
        ("../secret", None),
        ("a/../../b", None),
        ("//host/x", None),
        ("a\\b", None),
        ("", None),
    ],
)
def test_links_stay_beside_the_page(path: str, link: str | None) -> None:
    assert relative_link(path) == link
