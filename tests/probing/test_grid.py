"""From a configuration to a report: nothing is done twice, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sightline.errors import InputError, UnknownNameError
from sightline.probing import probe3d
from sightline.probing.config import config_from, find_config
from sightline.probing.datasets import expand_dataset
from sightline.probing.graph import Event, InProcess, ordered, run_graph
from sightline.probing.grid import plan_grid, run_grid
from sightline.probing.report import write_report
from sightline.probing.results import collect, published
from sightline.probing.splits import choose_split, read_splits, write_splits
from sightline.probing.store import Store, Task
from tests.probing import tiny


def task(name: str, *inputs: Task) -> Task:
    return Task(kind="scene", params={"name": name}, inputs=inputs, label=name)


def files(folder: Path) -> dict[str, float]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_keys_follow_everything_that_matters() -> None:
    a, b = task("a"), task("b")
    assert task("a").key == a.key
    assert len({a.key, b.key, task("c", a).key, task("c", b).key}) == 4
    assert Task(kind="scene", params={"name": "a"}, label="other").key == a.key


def test_runner_keeps_retries_and_blocks(tmp_path: Path) -> None:
    calls: Counter[str] = Counter()

    def work(task: Task, inputs: Sequence[Path], out: Path) -> dict[str, Any]:
        name = task.params["name"]
        calls[name] += 1
        (out / "half").write_text("x")
        if name == "broken" or (name == "shaky" and calls[name] == 1):
            raise RuntimeError("no luck")
        if name == "wrong":
            raise InputError("wrong input; fix it")
        return {}

    first = task("first")
    tasks = [task("shaky", first), task("broken", first), task("wrong"), task("fine")]
    tasks.append(task("after", tasks[1]))
    store = Store(tmp_path / "store")
    events: list[Event] = []
    outcome = run_graph(
        tasks, store, InProcess(store, work, retries=1, failures=tmp_path / "failed"), events.append
    )
    assert calls == {"first": 1, "shaky": 2, "broken": 2, "wrong": 1, "fine": 1}
    assert next(t.label for t in ordered(tasks)) == "first"
    assert {t.label for t in outcome.done} == {"first", "shaky", "fine"}
    reasons = sorted(outcome.failed.values())
    assert reasons == [
        "RuntimeError: no luck",
        "needs scene broken, which failed",
        "wrong input; fix it",
    ]
    assert "no luck" in (tmp_path / "failed" / f"scene-{tasks[1].key}.log").read_text()
    assert not store.path(tasks[1]).exists()  # nothing half-made
    assert "shaky" in (store.path(tasks[0]) / "log.txt").read_text()
    before = files(tmp_path / "store")
    again = run_graph(tasks, store, InProcess(store, work, retries=0))
    assert {t.label for t in again.kept} == {"first", "shaky", "fine"}
    assert calls["fine"] == 1
    assert {k: v for k, v in files(tmp_path / "store").items() if k in before} == before


def test_ctrl_c_leaves_finished_tasks(tmp_path: Path) -> None:
    def work(task: Task, inputs: Sequence[Path], out: Path) -> dict[str, Any]:
        if task.label == "b":
            raise KeyboardInterrupt
        return {}

    store = Store(tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        run_graph([task("a"), task("b")], store, InProcess(store, work))
    assert store.done(task("a"))
    assert not list((tmp_path / "store").glob("*/.*"))


def test_one_run_at_a_time_and_left_overs_go(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    left = store.root / "scene" / ".abc.12345678.tmp"
    left.mkdir(parents=True)
    with store.lock():
        assert not left.exists()
        with pytest.raises(InputError, match="another run"), store.lock():
            pass


PROBES = ["depth", "normals", "correspondence"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("grid") / "out"
    config = config_from(tiny.grid(baseline=True, probes=PROBES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe3d, "STEPS", 5)
        outcome = run_grid(config, output)
    assert not outcome.failed, outcome.failed
    return output


def test_grid_is_scored(finished: Path) -> None:
    results = collect(finished)
    assert results.missing == 0
    assert {(r.feature, r.mode) for r in results.rows} == {
        ("iuvrgb", "G"),
        ("random", "G"),
        ("InstantSplat", "free"),
    }
    for row in results.rows:
        assert 3 < row.mean("psnr") < 50
        assert 0 < row.mean("mask") <= 1
        assert (row.folder / "splats.ply").is_file()
    features, table = results.table("G", "psnr")
    assert features == ["iuvrgb", "random", "InstantSplat"]
    assert table.shape == (3, 1, 1)
    kinds = {c["mode"] for c in results.companions}
    assert kinds == {"depth", "normals", "correspondence"}


def test_repeated_and_extended_grids_redo_nothing(finished: Path) -> None:
    before = files(finished / "store")
    config = config_from(tiny.grid(baseline=True, seeds=[0, 1], probes=["correspondence"]))
    outcome = run_grid(config, finished)
    labels = sorted(t.label for t in outcome.done if t.kind != "probe3d")
    assert labels == [
        "ball InstantSplat free seed 1",
        "ball iuvrgb G seed 1",
        "ball random G seed 1",
        "ball random seed 1",  # drawn features follow the seed
    ]
    after = files(finished / "store")
    assert {k: after[k] for k in before if not k.endswith(".lock")} == {
        k: v for k, v in before.items() if not k.endswith(".lock")
    }


def test_quirks_touch_only_what_depends_on_them() -> None:
    plain = plan_grid(config_from(tiny.grid()))
    scored = plan_grid(config_from(tiny.grid(changes={**tiny.CHANGES, "quirks": {"Q14": True}})))
    masked = plan_grid(config_from(tiny.grid(changes={**tiny.CHANGES, "quirks": {"Q28": True}})))
    keys = [[needed.key for needed in g.cells[0].task.inputs] for g in (plain, scored, masked)]
    assert keys[0] == keys[1]
    assert keys[0][0] == keys[2][0]
    assert keys[0][1] != keys[2][1]
    assert keys[0][2] == keys[2][2]
    assert plain.cells[0].task.key != scored.cells[0].task.key


def test_q11_test_poses_are_shared_or_not() -> None:
    changes = {**tiny.CHANGES, "quirks": {"Q11": False}}
    for config, clouds in ((tiny.grid(), 1), (tiny.grid(changes=changes), 2)):
        grid = plan_grid(config_from(config))
        assert len({t.key for t in ordered(grid.tasks) if t.kind == "cloud"}) == clouds


def test_report_has_everything(finished: Path) -> None:
    page = write_report(finished, command="sightline probe report -o out").read_text("utf-8")
    for text in ("iuvrgb", "InstantSplat", "Paired differences", "Rank stability", "Probe3D", "ms"):
        assert text in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    lines = (finished / "scores.csv").read_text().splitlines()
    assert lines[0].startswith("protocol,scene,feature,mode,seed,view,")
    assert len(lines) > 3
    assert r"\begin{tabular}" in (finished / "table.tex").read_text()
    scene = next((finished / "scenes").glob("*.html")).read_text("utf-8")
    assert scene.count("data:image/jpeg") >= 7  # photo, renders, errors, features
    assert read_splits(finished / "dataset_split.json")["scenes"]["ball"].train


def test_published_table() -> None:
    assert published("all")["RADIO", "G"] == (19.73, 0.6513, 0.3143)
    assert published("LLFF")["IUVRGB", "T"] == (19.75, 0.7303, 0.2262)
    datasets = ("LLFF", "DL3DV", "Casual", "MipNeRF360", "MVimgNet", "Tanks")
    # "All" is the mean of the six data sets: 13 rows, 3 modes, 3 measures.
    checked = 0
    for (feature, mode), values in published("LLFF").items():
        for i, digits in enumerate((2, 4, 4)):
            mean = sum(published(d)[feature, mode][i] for d in datasets) / 6
            # Both sides are rounded, each by at most half a digit.
            assert abs(mean - published("all")[feature, mode][i]) <= 1.001 * 10**-digits
            assert values[i] == round(values[i], digits)
            checked += 1
    assert checked == 117


def test_split_rule() -> None:
    names = [f"v{i}" for i in range(12)]
    split = choose_split(names, 4, 3)
    assert split.train == ("v0", "v4", "v7", "v11")
    assert split.test == ("v1", "v6", "v10")
    long = choose_split([f"v{i:02d}" for i in range(60)], 4, 3)
    assert long.train[0] == "v24"
    assert long.train[-1] == "v35"
    five = choose_split(names[:5], 4, 3)
    assert (len(five.train), len(five.test)) == (4, 1)
    assert choose_split(names[:3], 8, 0).test == ()
    every = choose_split(names, 4, None)
    assert len(every.train) + len(every.test) == 12
    with pytest.raises(InputError, match="at least 2"):
        choose_split(["a"], 2, 1)


def test_split_files_of_the_authors(tmp_path: Path) -> None:
    text = {"DL3DV": {"Center": {"train": ["b", "a"], "test": ["c"], "hash": "cd9c"}}}
    path = tmp_path / "dataset_split.json"
    path.write_text(json.dumps(text))
    splits = read_splits(path)
    assert splits["DL3DV"]["Center"].train == ("b", "a")
    write_splits(path, splits)
    written = json.loads(path.read_text())["DL3DV"]["Center"]
    assert written == {"train": ["a", "b"], "test": ["c"], "hash": "cd9c"}
    path.write_text('{"A": {"b": {"train": [1]}}}')
    with pytest.raises(InputError, match="lists of names"):
        read_splits(path)


def test_missing_data_says_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nerf_llff_data.zip.*LLFF/SCENE/images"):
        expand_dataset({"name": "LLFF", "root": str(tmp_path)})
    with pytest.raises(UnknownNameError, match="LLFF"):
        expand_dataset({"name": "LLF", "root": str(tmp_path)})
    (tmp_path / "LLFF" / "room" / "images").mkdir(parents=True)
    (source,) = expand_dataset({"name": "LLFF", "root": str(tmp_path), "scenes": ["room"]})
    assert (source.id, source.dataset) == ("LLFF/room", "LLFF")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"modes": ["X"]}, "no entry of modes"),
        ({"seeds": [1, 1]}, "each once"),
        ({"sceens": []}, "no option of a grid"),
        ({"scenes": []}, "needs scenes"),
        ({"features": []}, "needs features"),
    ],
)
def test_wrong_grids_are_one_sentence(values: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        config_from(tiny.grid(**values))


@pytest.mark.parametrize("name", ["configs/probe/smoke.yaml", "probe/feat2gs.yaml", "smoke"])
def test_shipped_configurations_are_found(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name).is_file()
    with pytest.raises(InputError, match="smoke"):
        find_config("nothing.yaml")


def test_killed_runs_resume(tmp_path: Path) -> None:
    output, config = tmp_path / "out", tmp_path / "grid.json"
    changes = {**tiny.CHANGES, "steps": 60}
    config.write_text(json.dumps(tiny.grid(changes=changes, seeds=[0, 1], workers=2)))
    words = [sys.executable, "-m", "sightline", "probe", "run", "--config", str(config)]
    words += ["-o", str(output), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        words, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 600
    # A folder whose name begins with a point is not finished.
    while not list(output.glob("store/probe/[!.]*/task.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=600)  # its workers hold the pipes: they have ended too
    finished = files(output / "store")
    done = {k: v for k, v in finished.items() if "/." not in k}
    assert any(k.endswith("task.json") and "/probe/" in k for k in done)
    words += ["--workers", "1"]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    report = json.loads(result.stdout)
    assert report["kept"] >= 4
    assert report["kept"] + report["done"] == 9
    after = files(output / "store")
    assert {k: after[k] for k in done} == done
    assert not [k for k in after if ".tmp" in k]
