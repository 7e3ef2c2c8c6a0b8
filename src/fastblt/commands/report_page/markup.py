"""Builds HTML as a tree, in which whatever comes from a model or a file is text and never markup."""

from __future__ import annotations

from xml.etree.ElementTree import Element, tostring

from fastblt.commands.escapes import visible, visible_lines

#: What an element holds: elements and text, in this order; None is left out.
Child = Element | str | None


def element(tag: str, *children: Child, **attributes: str | None) -> Element:
    """Return an element.

    Control characters and changes of direction become escapes, in text and attributes.

    Args:
        tag: name of the element.
        children: its content.
        attributes: by name, with ``_`` for ``-`` and one more at the end of a Python keyword (``class_``); None is
            left out.
    """
    found = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items() if value is not None}
    made = Element(tag, {name: visible(value) for name, value in found.items()})
    last: Element | None = None
    for child in children:
        if isinstance(child, str):
            text = visible_lines(child)
            if last is None:
                made.text = (made.text or "") + text
            else:
                last.tail = (last.tail or "") + text
        elif child is not None:
            made.append(child)
            last = child
    return made


def document(root: Element) -> str:
    """Return the text of an HTML file with this ``html`` element."""
    return f"<!doctype html>\n{tostring(root, encoding='unicode', method='html')}\n"
