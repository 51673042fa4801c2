"""What the page is made of, without a browser."""

import asyncio
import base64
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sightline.app.jobs.kinds import KINDS, Option
from sightline.app.jobs.manager import Jobs
from sightline.app.jobs.uploads import UploadLimits, Uploads
from sightline.app.jobs.weights import Weights
from sightline.app.page.build import build_page
from sightline.app.page.controls import has_control, read_value
from sightline.app.page.look import page_asset
from sightline.app.page.marks import store_marks
from sightline.app.page.widgets import command_markup, error_markup
from sightline.errors import InputError, UnknownNameError

SCRIPTS = (
    "api.js",
    "files.js",
    "training.js",
    "data.js",
    "card.js",
    "marker.js",
    "gallery.js",
    "page.css",
)


def option(hint: Any, default: Any = None) -> Option:
    return Option(name="some_option", hint=hint, default=default, text="")


@pytest.mark.parametrize(
    ("hint", "default", "raw", "value"),
    [
        (int | None, None, "", None),
        (int | None, None, "12", 12),
        (float | None, None, "0.5", 0.5),
        (int, 3, 4.0, 4),
        (float, 0.1, 2, 2.0),
        (bool, False, True, True),
        (bool | None, None, "no", False),
        (bool | None, None, "default", None),
        (Literal["a", "b"], "a", "b", "b"),
        (Literal["a", "b"] | None, None, "default", None),
        (list[str] | None, None, "x, y,", ["x", "y"]),
        (list[int] | None, None, "1,2", [1, 2]),
        (tuple[str, ...] | None, None, "cup", ["cup"]),
        (str | None, None, " name ", "name"),
        (str, "auto", "", "auto"),
    ],
)
def test_controls_are_read_as_the_option_wants(
    hint: Any, default: Any, raw: Any, value: Any
) -> None:
    assert read_value(option(hint, default), raw) == value


@pytest.mark.parametrize("raw", ["many", "1.5", "1e999"])
def test_a_number_that_is_none_is_named(raw: str) -> None:
    with pytest.raises(InputError, match="--some-option: expected a number"):
        read_value(option(int | None), raw)


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_every_default_comes_back_from_its_control(name: str, data: st.DataObject) -> None:
    options = [one for one in KINDS[name].options().values() if has_control(one)]
    if not options:
        return
    one = data.draw(st.sampled_from(options))
    shown = one.default
    if isinstance(shown, list | tuple):
        shown = ",".join(map(str, shown))
    elif one.hint == bool | None:
        shown = {None: "default", True: "yes", False: "no"}[shown]
    assert read_value(one, shown) == one.default


def test_commands_and_errors_are_text_only() -> None:
    hostile = "<img src=x onerror=alert(1)> ${1} {{x}}"
    for text in (command_markup(hostile), error_markup(hostile)):
        assert "<img" not in text
        assert "&lt;img" in text


def test_page_loads_nothing_from_elsewhere() -> None:
    for name in SCRIPTS:
        text = page_asset(name).replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text.replace("box.innerHTML = `<svg", "")


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "uploads", UploadLimits())


def picture(uploads: Uploads, name: str) -> str:
    incoming = uploads.begin("me", name)
    incoming.write(png(np.zeros((8, 8, 3), np.uint8)))
    return uploads.finish(incoming).id


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_marks_become_references_beside_their_pictures(uploads: Uploads) -> None:
    one, two = picture(uploads, "a.png"), picture(uploads, "b.png")
    mask = base64.b64encode(png(np.full((8, 8), 255, np.uint8))).decode()
    marks = [
        {"image": one, "class": "nut", "box": [1, 2, 3, 4]},
        {"image": one, "class": "nut", "mask": mask},
        {"image": two, "class": "bolt", "points": [[1, 1], [5, 5]], "inside": [True, False]},
    ]
    ids = store_marks(uploads, "me", {one: "a.png", two: "b.png"}, marks)
    assert ids[:2] == [one, two]
    names = [uploads.get("me", id).name for id in ids]
    assert names == ["a.png", "b.png", "masks/1.png", "references.json"]
    rows = json.loads(uploads.path(uploads.get("me", ids[-1])).read_text())["references"]
    assert rows[0] == {"image": "a.png", "class": "nut", "box": [1, 2, 3, 4]}
    assert rows[1] == {"image": "a.png", "class": "nut", "mask": "masks/1.png"}
    assert rows[2]["inside"] == [True, False]


def test_marks_that_cannot_be_used_are_refused(uploads: Uploads) -> None:
    one, two = picture(uploads, "a.png"), picture(uploads, "a.png")
    names = {one: "a.png", two: "a.png"}
    for marks, said in (
        ([], "mark at least one object"),
        ([{"image": "0" * 32, "class": "x", "box": [0, 0, 1, 1]}], "picture that is not there"),
        ([{"image": one, "class": "x", "mask": "%%"}], "painted mask is damaged"),
        (
            [{"image": id, "class": "x", "box": [0, 0, 1, 1]} for id in (one, two)],
            "two pictures are called a.png",
        ),
    ):
        with pytest.raises(InputError, match=said):
            store_marks(uploads, "me", names, marks)


def test_kept_weights_stay_inside_their_folder(tmp_path: Path) -> None:
    source = tmp_path / "upload"
    source.write_bytes(b"weights")
    weights = Weights(tmp_path / "models")
    assert weights.keep("vggt", "model.safetensors", source) == "vggt/model.safetensors"
    assert weights.find("vggt/model.safetensors").read_bytes() == b"weights"
    with pytest.raises(InputError, match="already"):
        weights.keep("vggt", "model.safetensors", source)
    for name in ("../model.pt", "a/b.pt", "model.exe", ".pt"):
        with pytest.raises(InputError, match=r"weights are \.pt"):
            weights.keep("vggt", name, source)
    with pytest.raises(UnknownNameError):
        weights.keep("../vggt", "model.pt", source)


def test_every_form_begins_with_a_whole_command(open_jobs: Callable[..., Jobs]) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio (extra app)")
    jobs = open_jobs()

    async def build() -> Any:  # in a loop, or gradio makes one that nobody closes
        return build_page(jobs, lambda request: "nobody")

    blocks = asyncio.run(build()).blocks.values()
    commands = {
        block.elem_id.removesuffix("-command"): block.value
        for block in blocks
        if str(getattr(block, "elem_id", "")).endswith("-command")
    }
    # On the page are all kinds but those that stand below a result, and features.
    absent = {"demo", "render", "export", "probe-report", "features"}
    assert commands.keys() == KINDS.keys() - absent
    for name, command in commands.items():
        assert "sl-error" not in command, name
        assert f"sightline {' '.join(KINDS[name].words)}" in command
        for role in {"segment-lift": ("bank",)}.get(name, KINDS[name].required):
            assert f"--{role.replace('_', '-')}=" in command, name


def test_every_option_but_tables_has_a_control() -> None:
    for kind in KINDS.values():
        for one in kind.options().values():
            assert has_control(one) or "Mapping" in str(one.hint), (kind.name, one.name)
            assert dataclasses.is_dataclass(one)
