"""From what was marked on the page to the files that ``segment fit`` reads."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sightline.errors import InputError

if TYPE_CHECKING:
    from sightline.app.jobs.uploads import Uploads

_MOST_MARKS = 2000
_MOST_MASK = 4 << 20


def store_marks(
    uploads: "Uploads", owner: str, pictures: Mapping[str, str], marks: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Write marks as one JSON of references beside their pictures and masks.

    Args:
        uploads: Where files go.
        owner: Whose.
        pictures: Id of the upload -> name of the file.
        marks: Each with ``image`` (an id), ``class`` and one of ``box``, ``points`` with
            ``inside``, or ``mask`` (a PNG in base64).

    Returns:
        The ids of all files, for the role ``references`` or ``negatives``.

    Raises:
        InputError: If nothing is marked, or a mark is damaged.
    """
    if not marks:
        raise InputError("mark at least one object: name it, then draw a box, paint, or click")
    if len(marks) > _MOST_MARKS:
        raise InputError(f"up to {_MOST_MARKS} marks at a time, got {len(marks)}; remove some")
    rows: list[dict[str, Any]] = []
    used: dict[str, str] = {}
    ids = []
    for number, mark in enumerate(marks):
        image = str(mark.get("image"))
        if image not in pictures:
            raise InputError("a mark belongs to a picture that is not there; mark it again")
        name = pictures[image]
        if used.setdefault(name, image) != image:
            raise InputError(f"two pictures are called {name}; rename one and send it again")
        row: dict[str, Any] = {"image": name, "class": str(mark.get("class"))[:60]}
        if "mask" in mark:
            row["mask"] = f"masks/{number}.png"
            ids.append(_send(uploads, owner, row["mask"], _decode(mark["mask"])))
        else:
            row |= {key: mark[key] for key in ("box", "points", "inside") if key in mark}
        rows.append(row)
    text = json.dumps({"references": rows}, allow_nan=False).encode("utf-8")
    ids.append(_send(uploads, owner, "references.json", text))
    return [*dict.fromkeys(used.values()), *ids]


def _decode(text: Any) -> bytes:  # noqa: ANN401
    try:
        if not isinstance(text, str) or len(text) > _MOST_MASK:
            raise ValueError
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise InputError("a painted mask is damaged; paint it again") from error


def _send(uploads: "Uploads", owner: str, name: str, content: bytes) -> str:
    incoming = uploads.begin(owner, name)
    try:
        incoming.write(content)
    except BaseException:
        uploads.abort(incoming)
        raise
    return uploads.finish(incoming).id
