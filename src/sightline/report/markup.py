"""Build HTML and SVG without ever pasting text into it.

File names, titles and messages come from strangers. `element` escapes every child and attribute
that is not already `Html`, so markup can only come from our own code.
"""

import base64
import html
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})
# Control characters, and the lone surrogates by which Python spells file names that are not UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

Child = str | None | Iterable[Any]
"""Text, markup, nothing, or iterables of these, nested as deep as one likes."""
Attribute = str | int | float | bool | None


class Html(str):
    """Text that is finished markup."""

    __slots__ = ()


def escape(text: str) -> Html:
    """Return text as markup: special characters as entities, unprintable ones as U+FFFD."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", text)))


def join(children: Child) -> Html:
    """Return nested children as one piece of markup; None adds nothing."""
    if children is None:
        return Html("")
    if isinstance(children, str):
        return escape(children)
    return Html("".join(join(child) for child in children))


def element(tag: str, *children: Child, **attributes: Attribute) -> Html:
    """Return ``<tag attributes>children</tag>``.

    Args:
        tag: Element name.
        children: Text, markup, None (nothing), or iterables of these.
        attributes: ``class_`` is spelt with the underscore, ``data_x`` becomes ``data-x``. True
            writes the bare name; False and None leave the attribute out.
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        parts.append(name if value is True else f'{name}="{escape(str(value))}"')
    opening = f"<{' '.join(parts)}>"
    return Html(opening if tag in _VOID else f"{opening}{join(children)}</{tag}>")


def data_uri(data: bytes, media_type: str) -> str:
    """Return bytes as a ``data:`` address."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def file_name(name: str) -> Html:
    """Return a file name as markup, set apart so that right-to-left marks in it stay inside."""
    return element("bdi", name, class_="name")


def relative_link(path: str) -> str | None:
    """Return the address of a file beside or below the page; None if it would lead elsewhere.

    Args:
        path: Relative path with ``/`` between its parts.
    """
    parts = path.split("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\\" in path:
        return None
    return "./" + quote(path, errors="replace")
