import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.errors import OutputError
from sightline.report.charts import Curve
from sightline.report.data import (
    Comparison,
    DepthPicture,
    Export,
    InputPhoto,
    NamedPicture,
    ReportData,
    Stage,
)
from sightline.report.html import render_report, write_report
from sightline.report.plan import CameraPlan
from tests.browser import Browser
from tests.report.fake import ring_cameras, ring_cloud

HOSTILE = "\"><script>alert(1)</script><img src=http://evil.example/x onerror='alert(1)'>\udc80"


def picture(seed: int, height: int = 48, width: int = 64) -> torch.Tensor:
    """Smooth like a photo, so that sizes are realistic."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 6, 8))).float()
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return fine[0].clamp(0, 1)


def full_data(
    views: int = 10, size: tuple[int, int] = (48, 64), prefix: str = "", every: int = 4
) -> ReportData:
    names = tuple(f"{prefix}IMG_{i:04d}.jpg" for i in range(views))
    test = tuple(range(0, views, every))
    registered = torch.ones(views, dtype=torch.bool)
    registered[1] = False
    cameras = ring_cameras(views, *size)
    cameras.w2c[1] = torch.nan
    steps = tuple(float(s) for s in range(0, 1000, 10))
    return ReportData(
        title=f"{prefix}fox",
        command=f"sightline reconstruct {shlex.quote(prefix + 'fox')} -o out --seed 0",
        facts=(("Device", "cpu"), ("Seed", "0"), ("torch", f"{prefix}2.13.0")),
        stages=(
            Stage(name="cameras", seconds=61.25, peak_memory=920_000_000),
            Stage(name="splats", seconds=201.4),
        ),
        warnings=(f"{prefix}something was guessed",),
        photos=tuple(
            InputPhoto(
                name=name,
                picture=picture(i, *size),
                registered=bool(registered[i]),
                reason="" if registered[i] else f"{prefix}too few matches (best 11)",
                held_out=i in test,
            )
            for i, name in enumerate(names)
        ),
        plan=CameraPlan(
            cameras=cameras,
            names=names,
            registered=registered,
            test=test,
            points=ring_cloud(200).points,
        ),
        comparisons=tuple(
            Comparison(name=names[i], render=picture(i + 1000, *size), photo=picture(i, *size))
            for i in test
        ),
        scores={
            "psnr": {names[i]: 24.0 + 0.1 * i for i in test},
            "ssim": {names[i]: 0.8 for i in test},
        },
        depths=tuple(
            DepthPicture(name=name, depth=torch.rand(*size) * 3 + 1) for name in names[:3]
        ),
        features=(NamedPicture(name=names[0], picture=picture(5, *size)),),
        curves=(Curve(name="Loss", steps=steps, values=tuple(math.exp(-s / 200) for s in steps)),),
        num_splats=43210,
        exports=(
            Export(path="exports/scene.ply", what="points", size=1_000_000),
            Export(path=f"exports/{prefix}x.ply"),
            Export(path="../../outside"),
        ),
    )


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def text_of(page: str) -> str:
    body = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))
    return text.replace("\u202f", " ")


def test_page_says_what_there_is(tmp_path: Path) -> None:
    path = write_report(full_data(), tmp_path / "report.html")
    page = path.read_text("utf-8")
    text = text_of(page)
    assert "9 of 10 pictures registered · 43 210 splats · 24.40 dB on 3 held-out views" in text
    assert "too few matches (best 11)" in text
    assert "4 min 23 s" in text
    for heading in ("Held-out views", "Cameras", "Depth", "Features", "Pictures", "Training",
                    "Scores", "Run", "Files", "Make it again"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page
    assert text.rstrip().endswith("sightline reconstruct fox -o out --seed 0 Copy")
    assert re.search(r"Mean +24\.40 +0\.800", text)
    assert re.search(r"cameras +61\.2 +0\.92 +splats +201\.4 +\u2013", text)
    assert Reader(page).open == []


def test_pictures_come_before_numbers() -> None:
    page = render_report(full_data())
    order = [page.index(mark) for mark in ('class="hero"', 'class="tiles"', "Held-out views",
             "<h2>Cameras", "<h2>Scores", "Make it again")]  # fmt: skip
    assert order == sorted(order)


def test_nothing_is_loaded_from_elsewhere() -> None:
    reader = Reader(render_report(full_data()))
    for tag, attributes in reader.tags:
        if tag in ("img", "link"):
            assert (attributes.get("src") or attributes.get("href") or "").startswith("data:")
        if tag == "a":
            assert (attributes["href"] or "").startswith("./exports/")
    policy = next(a["content"] for t, a in reader.tags if a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy


def test_hostile_names_stay_text() -> None:
    page = render_report(full_data(prefix=HOSTILE))
    page.encode("utf-8")
    reader = Reader(page)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/jpeg;base64,")
    links = [a["href"] for t, a in reader.tags if t == "a"]
    assert all(link and link.startswith("./exports/") for link in links)
    assert "../../outside" in text_of(page)  # named, not linked


def test_small_report_needs_only_a_title_and_a_command() -> None:
    page = render_report(ReportData(title="empty", command="sightline demo"))
    assert "sightline demo" in page
    assert page.count("<section") == 1
    assert Reader(page).open == []


@pytest.mark.parametrize("views", [1, 2])
def test_few_views(views: int) -> None:
    data = full_data(2)
    shown = data.comparisons[:1] * views
    page = render_report(ReportData(title="x", command="y", comparisons=shown))
    assert Reader(page).open == []
    assert page.count('class="wipe"') >= 1


def test_unscored_views_and_nan_scores_are_dashes() -> None:
    data = full_data()
    scores = {"psnr": {"a.jpg": 20.0, "b.jpg": math.nan}, "ssim": {"a.jpg": 0.5}}
    page = render_report(
        ReportData(title="x", command="y", scores=scores, comparisons=data.comparisons)
    )
    text = text_of(page)
    assert re.search(r"a\.jpg +20\.00 +0\.500 +b\.jpg +\u2013 +\u2013 +Mean +20\.00 +0\.500", text)


def test_fifty_and_five_hundred_noisy_views_stay_below_8_mb() -> None:
    """Noise is the worst case for JPEG: real photos take a third."""
    torch.manual_seed(0)
    noise = (torch.rand(3, 240, 320) * 255).to(torch.uint8)
    for views in (50, 500):
        names = [f"{i}.jpg" for i in range(views)]
        photos = tuple(InputPhoto(name=n, picture=noise, registered=i > 3) for i, n in
                       enumerate(names))  # fmt: skip
        pairs = tuple(Comparison(name=n, render=noise, photo=noise.flip(2)) for n in names[::8])
        depths = tuple(DepthPicture(name=n, depth=torch.rand(240, 320)) for n in names[:20])
        data = ReportData(title="x", command="y", photos=photos, comparisons=pairs, depths=depths)
        assert len(render_report(data)) < 8_000_000


def test_rejected_pictures_that_are_not_shown_are_still_named() -> None:
    photos = tuple(
        InputPhoto(name=f"{i}.jpg", registered=False, reason=f"reason {i}") for i in range(500)
    )
    text = text_of(render_report(ReportData(title="x", command="y", photos=photos)))
    assert all(f"reason {i} " in text for i in range(500))


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_report(ReportData(title="x", command="y"), tmp_path / "file" / "report.html")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_report_in_a_browser(browser: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    path = write_report(full_data(prefix=HOSTILE), tmp_path / "report.html")
    with browser.page() as page:
        page.resize(width, 800, dark=dark, touch=width < 500)
        page.goto(path.as_uri())
        # Every picture decodes, and the page is no wider than the screen.
        assert page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        levels = [int(v) for v in re.findall(r"\d+", background)]
        assert (max(levels) < 40) == dark
        # The slider moves the cut.
        page.evaluate(
            "(() => { const s = document.querySelector('.wipe input'); s.value = 20;"
            " s.dispatchEvent(new Event('input')); })()"
        )
        cut = "document.querySelector('.wipe').style.getPropertyValue('--cut')"
        assert page.evaluate(cut) == "20%"
        assert page.screenshot().std() > 20
        assert page.errors == []
        assert page.external_requests() == []
