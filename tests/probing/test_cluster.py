import importlib.util
from pathlib import Path

import pytest

from sightline.errors import MissingExtraError
from sightline.probing.config import config_from
from sightline.probing.grid import run_grid
from sightline.probing.results import collect
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
