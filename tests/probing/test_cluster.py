import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from sightline.errors import MissingExtraError
from sightline.probing.config import config_from
from sightline.probing.graph import run_graph
from sightline.probing.grid import run_grid
from sightline.probing.results import collect
from sightline.probing.store import Store, Task
from tests.probing import tiny
from tests.probing.chores import work

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_missing_ray_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r'pip install "sightline\[cluster\]"'):
        run_grid(config_from(tiny.grid()), tmp_path / "out", cluster="auto")


@pytest.fixture(scope="module")
def two_cores() -> Iterator[None]:
    """A cluster on this machine; Ray gives its own processes 30 s to start, busy machine or not."""
    ray = pytest.importorskip("ray")
    for attempt in range(3):
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
            break
        except Exception:  # Ray raises bare ones
            ray.shutdown()
            if attempt == 2:
                raise
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
@pytest.mark.filterwarnings("ignore")
def test_two_workers_give_the_same_table(tmp_path: Path) -> None:
    config = config_from(tiny.grid(seeds=[0, 1]))
    there = run_grid(config, tmp_path / "ray", cluster="auto")
    here = run_grid(config, tmp_path / "here")
    assert not there.failed
    assert {t.key for t in there.done} == {t.key for t in here.done}
    for one, two in zip(
        collect(tmp_path / "ray").rows, collect(tmp_path / "here").rows, strict=True
    ):
        assert one.scores == two.scores


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    from sightline.probing.cluster import RayExecutor

    store = Store(tmp_path / "store")
    marker = tmp_path / "marker"
    task = Task(kind="scene", params={"name": "dies", "marker": str(marker)}, label="dies")
    outcome = run_graph([task], store, RayExecutor(store, work, "auto", retries=1))
    assert marker.read_text() == "once"
    assert not outcome.failed
    assert store.done(task)
