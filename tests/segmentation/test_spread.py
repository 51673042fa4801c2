"""Work on a cluster: the same bank and the same instances as in one process, in order."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sightline.errors import InputError, MissingExtraError
from sightline.segmentation import spread, tasks
from sightline.segmentation.options import EncoderOptions, MaskOptions, ReferenceOptions
from sightline.segmentation.references import Reference
from sightline.segmentation.synthetic import write_dataset
from sightline.types import InstanceMasks

HAS_RAY = importlib.util.find_spec("ray") is not None
MASKS = MaskOptions(batch=1, device="cpu")
COLOUR = EncoderOptions(backbone="colour", size=112)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("spread") / "shapes", 5, seed=3)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares run in this process, the last one first, as a cluster may finish them."""

    def backwards(function, shares, *, cluster, gpus) -> Iterator:
        assert cluster == "auto"
        assert gpus == 0
        for at in reversed(range(len(shares))):
            try:
                yield at, function(shares[at])
            except InputError as error:
                yield at, error

    monkeypatch.setattr(spread, "run_tasks", backwards)


def fit_and_predict(data: Path, output: Path, cluster: str | None) -> list[InstanceMasks]:
    references = ReferenceOptions(references=str(data), shots=1)
    bank = tasks.fit(references, COLOUR, MASKS, output, cluster=cluster)
    segmenter = tasks.open_segmenter(tasks.open_encoder(COLOUR, MASKS), MASKS, bank)
    segmenter = tasks.spread(segmenter, None, MASKS, cluster)
    return segmenter.predict(sorted((data / "images").iterdir()))


def same(here: list[InstanceMasks], there: list[InstanceMasks]) -> None:
    assert len(here) == len(there)
    assert any(len(found.labels) for found in here)
    for one, two in zip(here, there, strict=True):
        assert torch.equal(one.masks, two.masks)
        assert torch.equal(one.labels, two.labels)
        torch.testing.assert_close(one.boxes, two.boxes)
        torch.testing.assert_close(one.scores, two.scores)


def test_shares_that_end_in_any_order_give_the_same(data, in_threads, tmp_path) -> None:
    here = fit_and_predict(data, tmp_path / "here.safetensors", None)
    there = fit_and_predict(data, tmp_path / "there.safetensors", "auto")
    assert (tmp_path / "here.safetensors").read_bytes() == (
        tmp_path / "there.safetensors"
    ).read_bytes()
    same(here, there)


def test_what_is_wrong_with_a_share_is_told(data, in_threads) -> None:
    segmenter = tasks.open_segmenter(tasks.open_encoder(COLOUR, MASKS), MASKS)
    segmenter = tasks.spread(segmenter, None, MASKS, "auto")
    picture = next((data / "images").iterdir())
    empty = Reference(image=picture, label="a", mask=torch.zeros(*_size(picture), dtype=torch.bool))
    with pytest.raises(InputError, match="mask of .* is empty"):
        segmenter.fit([empty])


def _size(picture: Path) -> tuple[int, int]:
    from sightline.io.images import read_image

    return read_image(picture).pixels.shape[:2]


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_missing_ray_is_one_sentence(data, tmp_path) -> None:
    with pytest.raises(MissingExtraError, match=r'pip install "sightline\[cluster\]"'):
        fit_and_predict(data, tmp_path / "bank.safetensors", "auto")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed")
@pytest.mark.filterwarnings("ignore")
def test_two_workers_give_the_same(data, tmp_path) -> None:
    import ray  # pyright: ignore[reportMissingImports]

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        there = fit_and_predict(data, tmp_path / "there.safetensors", "auto")
    finally:
        ray.shutdown()
    here = fit_and_predict(data, tmp_path / "here.safetensors", None)
    same(here, there)
