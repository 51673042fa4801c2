import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sightline.errors import MissingExtraError
from sightline.probing.config import config_from
from sightline.probing.graph import run_graph
from sightline.probing.grid import run_grid
from sightline.probing.results import collect
from sightline.probing.store import Store, Task
from tests.probing import tiny

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_missing_ray_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r'pip install "sightline\[cluster\]"'):
        run_grid(config_from(tiny.grid()), tmp_path / "out", cluster="auto")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed")
@pytest.mark.filterwarnings("ignore")
def test_two_workers_give_the_same_table(tmp_path: Path) -> None:
    import ray  # pyright: ignore[reportMissingImports]

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        config = config_from(tiny.grid(seeds=[0, 1]))
        there = run_grid(config, tmp_path / "ray", cluster="auto")
        here = run_grid(config, tmp_path / "here")
    finally:
        ray.shutdown()
    assert not there.failed
    assert {t.key for t in there.done} == {t.key for t in here.done}
    for one, two in zip(
        collect(tmp_path / "ray").rows, collect(tmp_path / "here").rows, strict=True
    ):
        assert one.scores == two.scores


def _die_once(task: Task, inputs: Sequence[Path], out: Path) -> dict[str, Any]:
    marker = Path(task.params["marker"])
    (out / "half").write_text("x")
    if not marker.exists():
        marker.write_text("died")
        os._exit(9)
    return {"alive": True}


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    import ray  # pyright: ignore[reportMissingImports]

    from sightline.probing.cluster import RayExecutor

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        store = Store(tmp_path / "store")
        marker = tmp_path / "marker"
        task = Task(kind="scene", params={"marker": str(marker)}, label="dies")
        outcome = run_graph([task], store, RayExecutor(store, _die_once, "auto", retries=1))
    finally:
        ray.shutdown()
    assert marker.read_text() == "died"
    assert not outcome.failed
    assert store.summary(task)["summary"] == {"alive": True}
