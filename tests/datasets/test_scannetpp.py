import json

import numpy as np
import pytest
import torch

from sightline.datasets.multiview import collate, sample_rng
from sightline.datasets.overlap import target_masks
from sightline.datasets.scannetpp import (
    ScanNetPP,
    draw_by_overlap,
    measure_coverage,
    open_scannetpp,
    read_test_set,
)
from sightline.errors import FileFormatError, InputError
from tests.datasets.multiview import check_sample, worst_reprojection
from tests.datasets.replicas import room, write_scannetpp

EXACT = room(7)
SCENE = "0123456789"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_scannetpp(tmp_path_factory.mktemp("scannetpp"), EXACT)
    (scene,) = open_scannetpp(root)
    assert scene.coverage is None
    (root / "coverage").mkdir()
    shares = measure_coverage(scene)
    (root / "coverage" / f"{SCENE}.json").write_text(json.dumps({SCENE: shares.tolist()}))
    return root


def test_good_frames_come_with_exact_cameras(root):
    (scene,) = open_scannetpp(root)
    assert scene.frames == tuple(f"DSC{v:05d}.JPG" for v in (0, 1, 3, 4, 5, 6))
    kept = [0, 1, 3, 4, 5, 6]
    # The published conversion turns the world too: relative poses are what has to agree.
    ours = scene.w2c[1:] @ np.linalg.inv(scene.w2c[:1])
    exact = EXACT.w2c[kept].double()
    theirs = (exact[1:] @ torch.linalg.inv(exact[:1])).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(scene.K, EXACT.K[0].double().numpy(), atol=1e-5)


def test_samples_are_pairs_with_targets(root):
    source = ScanNetPP(scenes=open_scannetpp(root))
    samples = [source.draw(sample_rng(0, "train", i), 4, 48, 48) for i in range(3)]
    for sample in samples:
        check_sample(sample, 4, 48, 48)
        assert bool(sample.metric)
        assert sample.num_context == 2
        assert len(set(sample.names[0])) == 4
        share, apart = worst_reprojection(sample)
        assert share > 0.3
        assert apart < 0.05
    masks = target_masks(collate(samples))
    assert masks.shape == (3, 2, 48, 48)
    assert float(masks.float().mean()) > 0.5


def test_overlap_decides_who_is_drawn(root):
    (scene,) = open_scannetpp(root)
    shares = scene.coverage
    assert shares is not None
    assert shares.shape == (6, 6)
    assert (np.diag(shares) > 0.99).all()
    bound = float(np.median(shares))
    rng = np.random.default_rng(0)
    for _ in range(50):
        first, second, *targets = draw_by_overlap(rng, scene, 4, (bound, bound))
        allowed = [i for i in range(6) if i != first and shares[first, i] > bound]
        best = max((i for i in range(6) if i != first), key=lambda i: shares[first, i])
        assert second in (allowed or [best])
        assert len({first, second, *targets}) == 4
    # Nothing overlaps wholly: the best of all are taken.
    first, second, *targets = draw_by_overlap(rng, scene, 5, (1.0, 1.0))
    rest = [i for i in range(6) if i not in (first, second)]
    ranked = sorted(rest, key=lambda i: -max(shares[first, i], shares[second, i]))
    assert targets == ranked[:3]


def test_without_coverage_the_remedy_is_named(tmp_path):
    root = write_scannetpp(tmp_path, room(3), bad=9)
    source = ScanNetPP(scenes=open_scannetpp(root))
    with pytest.raises(InputError, match=r"got no coverage; make coverage with measure_coverage"):
        source.draw(sample_rng(0, "train", 0), 2, 24, 24)


def test_evaluation_lists(tmp_path):
    rows = [[SCENE, i, i + 1, i + 2] for i in range(25)]
    file = tmp_path / "test_set_0.5_0.5.json"
    file.write_text(json.dumps(rows))
    assert read_test_set(file) == ((SCENE, 0, 1, 2), (SCENE, 10, 11, 12), (SCENE, 20, 21, 22))
    file.write_text('[["a", 1, "x", 2]]')
    with pytest.raises(FileFormatError, match=r"test_set_0\.5_0\.5\.json: expected frame numbers"):
        read_test_set(file)
    file.write_text("[[1, 2]]")
    with pytest.raises(FileFormatError, match="rows of scene"):
        read_test_set(file)


def test_bad_sets_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nvs_sem_train\.txt"):
        open_scannetpp(tmp_path)
    root = write_scannetpp(tmp_path, room(3))
    with pytest.raises(InputError, match=r"nvs_sem_val\.txt names no scene"):
        open_scannetpp(root, split="val")  # its only scene is excluded
    raw = root / "raw" / "data" / SCENE / "dslr" / "nerfstudio" / "transforms.json"
    raw.write_text('{"frames": []}')
    with pytest.raises(FileFormatError, match=r"transforms\.json: expected frame DSC00000"):
        open_scannetpp(root)
    (root / "coverage").mkdir()
    write_scannetpp(tmp_path, room(3))
    (root / "coverage" / f"{SCENE}.json").write_text(json.dumps({SCENE: [[1.0]]}))
    with pytest.raises(FileFormatError, match=r'2x2 numbers as "0123456789"'):
        open_scannetpp(root)


def test_pictures_of_another_size_are_refused(tmp_path):
    root = write_scannetpp(tmp_path, room(3), bad=9)
    (scene,) = open_scannetpp(root)
    file = scene.folder / "nerfstudio" / "transforms_undistorted.json"
    cameras = json.loads(file.read_text())
    file.write_text(json.dumps({**cameras, "w": 100}))
    (scene,) = open_scannetpp(root)
    with pytest.raises(FileFormatError, match=r"DSC00000\.JPG: expected 100 x 72 pixels"):
        scene.read(0)
