import time

import pytest

from sightline.app.jobs.stages import ProgressTracker

WEIGHTS = {"read": 1.0, "match": 2.0, "network": 4.0, "splats": 13.0}


def say(tracker: ProgressTracker, stage: str, done: float, total: float) -> float:
    return tracker.take({"stage": stage, "done": done, "total": total}).fraction


def test_stages_count_by_their_weight() -> None:
    tracker = ProgressTracker(WEIGHTS)
    assert say(tracker, "read a.mp4", 1, 2) == pytest.approx(0.5 / 20)
    assert say(tracker, "read b.mp4", 2, 2) == pytest.approx(0.75 / 20)
    assert say(tracker, "match", 1, 2) == pytest.approx(2 / 20)
    # The network never came: it does not count any more.
    assert say(tracker, "splats", 0, 10) == pytest.approx(3 / 16, abs=1e-4)
    assert say(tracker, "splats", 10, 10) == 1.0


def test_it_never_goes_back_and_survives_nonsense() -> None:
    tracker = ProgressTracker(WEIGHTS)
    first = say(tracker, "match", 2, 2)
    assert say(tracker, "match", 0, 5) == first
    assert say(tracker, "unknown", 0, 0) >= first
    assert say(tracker, "splats", 20, 10) == 1.0


def test_notes_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    tracker = ProgressTracker({"splats": 1.0})
    now[0] = 10.0
    tracker.take({"stage": "splats", "done": 1, "total": 4})
    found = tracker.take({"stage": "splats", "note": "loss 0.1"})
    assert (found.stage, found.note, found.seconds_left) == ("splats", "loss 0.1", 30.0)
    assert [(s.name, s.done, s.total) for s in found.stages] == [("splats", 1.0, 4.0)]
