import itertools
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sightline.reconstruction.job import CameraSpec, Job, Settings, chunks, keys_of
from sightline.reconstruction.log import Report
from sightline.reconstruction.matching import choose_pairs, coarse_matches

SETTINGS = Settings(
    max_image_size=1600,
    max_features=100,
    matching="auto",
    neighbors=4,
    mapper="incremental",
    seed=0,
    num_threads=1,
)


def random_counts(views: int, seed: int, most: int = 60) -> np.ndarray:
    counts = np.random.default_rng(seed).integers(0, most, (views, views))
    counts = np.triu(counts, 1)
    return counts + counts.T


def components(pairs: np.ndarray) -> int:
    left, found = set(range(len(pairs))), 0
    while left:
        stack, found = [left.pop()], found + 1
        while stack:
            near = set(np.flatnonzero(pairs[stack.pop()]).tolist()) & left
            left -= near
            stack += near
    return found


@given(st.integers(2, 40), st.integers(0, 10**6), st.sampled_from(["auto", "sequential"]))
def test_pairs_are_symmetric_and_join_all_views(views: int, seed: int, matching):
    counts = random_counts(views, seed) + 1 - np.eye(views, dtype=int)
    pairs = choose_pairs(counts, [], matching, neighbors=3)
    assert (pairs == pairs.T).all()
    assert not pairs.diagonal().any()
    assert components(pairs) == 1


def test_exhaustive_and_few_views_take_all_pairs():
    counts = np.zeros((30, 30), int)
    assert choose_pairs(counts, [], "exhaustive", 3).sum() == 30 * 29
    assert choose_pairs(counts[:10, :10], [], "auto", 3).sum() == 10 * 9
    assert not choose_pairs(counts, [], "auto", 3).any()


def test_auto_takes_the_most_similar_and_stays_sparse():
    views = 60
    i, j = np.indices((views, views))
    counts = np.maximum(0, 50 - 5 * np.abs(i - j))  # like a walk: the next nine share something
    pairs = choose_pairs(counts, [], "auto", 6)
    assert pairs.sum(1).max() <= 13
    assert all(pairs[k, k + 1] for k in range(views - 1))
    assert not pairs[np.abs(i - j) > 9].any()


def test_video_compares_neighbours_in_time_and_returns():
    views = 40
    counts = np.zeros((views, views), int)
    counts[3, 38] = counts[38, 3] = 30
    counts[5, 30] = counts[30, 5] = 2  # chance
    order = [*range(0, views, 2), *range(1, views, 2)]  # time is not the order of the views
    for matching in ("auto", "sequential"):
        pairs = choose_pairs(counts, [order], matching, 8)
        assert all(pairs[a, b] for a, b in itertools.pairwise(order))
        assert pairs[3, 38]
        assert not pairs[3, 37]
    pairs = choose_pairs(counts, [], "sequential", 8)
    assert all(pairs[k, k + 1] for k in range(views - 1))


def test_coarse_matches_count_shared_descriptors():
    rng = np.random.default_rng(0)
    shared = rng.random((50, 128), dtype=np.float32)
    views = []
    for share in (50, 50, 20, 0):
        own = rng.random((50, 128), dtype=np.float32)
        own[:share] = shared[:share] + 0.02 * rng.random((share, 128), dtype=np.float32)
        views.append(own[rng.permutation(50)] - 0.5)
    views[3][30:] = 0  # fewer features than the others
    descriptors = np.stack(views)
    descriptors /= np.linalg.norm(descriptors, axis=2, keepdims=True) + 1e-9
    counts = coarse_matches(descriptors)
    assert (counts == counts.T).all()
    assert counts[0, 1] == 50
    assert counts[0, 2] == counts[1, 2] == 20
    assert counts[3].max() <= 2


def job_of(tmp_path: Path, **changes) -> Job:
    files = []
    for i in range(2):
        file = tmp_path / f"{i}.png"
        file.write_bytes(bytes([i]))
        files.append(str(file))
    values = {
        "names": ("a", "b"),
        "files": tuple(files),
        "masks": (None, None),
        "cameras": (
            CameraSpec(width=4000, height=3000, focal=3100.5),
            CameraSpec(width=64, height=48, model="PINHOLE", params=(50.0, 51.0, 32.0, 24.0)),
        ),
        "camera_of_view": (0, 1),
        "sequences": ((0, 1),),
        "w2c": None,
        "settings": SETTINGS,
    }
    return Job(**(values | changes))


def test_job_survives_json(tmp_path: Path):
    for w2c in (None, ((1.0,) * 12, (0.1,) * 12)):
        job = job_of(tmp_path, w2c=w2c)
        job.write(tmp_path / "job.json")
        assert Job.read(tmp_path / "job.json") == job
    assert job.sift_size(0) == (1600, 1200)
    assert job.sift_size(1) == (64, 48)


def test_keys_follow_what_they_depend_on(tmp_path: Path):
    job = job_of(tmp_path)
    before = keys_of(job, "4.2")
    assert keys_of(job, "4.2") == before
    assert keys_of(job, "4.3").features != before.features
    renamed = keys_of(job_of(tmp_path, names=("c", "d")), "4.2")
    assert renamed.matches == before.matches
    assert renamed.result != before.result
    moved = keys_of(job_of(tmp_path, sequences=()), "4.2")
    assert moved.features == before.features
    assert moved.matches != before.matches
    Path(job.files[1]).write_bytes(b"other content")
    assert keys_of(job, "4.2").features != before.features


def test_chunks():
    assert [list(c) for c in chunks(5, 2)] == [[0, 1], [2, 3], [4]]
    assert chunks(0, 3) == []


def test_report_follows_the_log(tmp_path: Path):
    import io
    import json
    import time

    log, stream = tmp_path / "log", io.StringIO()
    log.write_text("Processed file [9/9]\n")  # an older stage
    with Report(stream, log).counted("matching", -10, 40, 10), log.open("a") as out:
        for block in (1, 2, 3):
            out.write(f"I2026 x.cc:1] Processing block [{block}/5]\n")
            out.flush()
            time.sleep(0.35)
    said = [json.loads(line)["done"] for line in stream.getvalue().splitlines()]
    assert said == sorted(said)
    assert said[-1] == 20
    Report().progress("x", 1, 2)  # without a stream nothing happens
