"""What the page's own parts send, read as far as it has the form that they give it.

A browser may send anything in their place.
"""

from typing import Any

from sightline.errors import InputError


def sent_job(value: Any) -> str | None:  # noqa: ANN401
    """Return the job that a card shows, None where it shows none."""
    job = value.get("job") if isinstance(value, dict) else None
    return job if isinstance(job, str) and job else None


def sent_files(value: Any) -> dict[str, str]:  # noqa: ANN401
    """Return the uploads that a drop zone holds: id -> name.

    Raises:
        InputError: If some are still on their way.
    """
    if isinstance(value, dict) and value.get("pending"):
        raise InputError("some files are still on their way to the server; wait a moment")
    return shown_files(value)


def shown_files(value: Any) -> dict[str, str]:  # noqa: ANN401
    """Return the uploads that a drop zone names, arrived or not: id -> name."""
    return {_text(file, "id"): _text(file, "name") for file in sent_list(value, "files")}


def sent_list(value: Any, name: str) -> list[dict[str, Any]]:  # noqa: ANN401
    """Return the objects that a part holds under a name.

    Raises:
        InputError: If they are none.
    """
    if value is None:
        return []
    if not isinstance(value, dict):
        raise _wrong()
    found = value.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise _wrong()
    return found


def _text(file: dict[str, Any], key: str) -> str:
    text = file.get(key)
    if not isinstance(text, str):
        raise _wrong()
    return text


def _wrong() -> InputError:
    return InputError("a part of the page sent what it should not; load the page again")
