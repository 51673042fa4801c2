"""Tasks in processes of this machine end like those in this process, whatever happens to one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.errors import InputError
from sightline.probing.config import config_from
from sightline.probing.graph import Event, run_graph
from sightline.probing.store import Store, Task
from sightline.probing.workers import WorkerPool
from tests.probing import tiny
from tests.probing.chores import work


def task(name: str, *inputs: Task, **params: Any) -> Task:
    return Task(kind="scene", params={"name": name, **params}, inputs=inputs, label=name)


def test_whatever_happens_to_a_task(tmp_path: Path) -> None:
    first = task("first")
    marker = tmp_path / "marker"
    names = ("broken", "wrong", "fine")
    tasks = [first, task("dies", first, marker=str(marker)), *(task(n, first) for n in names)]
    tasks.append(task("after", tasks[2]))
    store = Store(tmp_path / "store")
    events: list[Event] = []
    retried: list[str] = []
    with WorkerPool(
        store, work, 2, 1, tmp_path / "failed", lambda task, _: retried.append(task.label)
    ) as pool:
        outcome = run_graph(tasks, store, pool, events.append)
        processes = [worker.process for worker in pool._workers]
        assert 1 <= len(processes) <= 2
    assert not any(process.is_alive() for process in processes)
    assert {t.label for t in outcome.done} == {"first", "dies", "fine"}
    assert {t.label: outcome.failed[t.key] for t in tasks if t.key in outcome.failed} == {
        "broken": "RuntimeError: no luck",
        "wrong": "wrong input; fix it",
        "after": "needs scene broken, which failed",
    }
    assert sorted(retried) == ["broken", "dies"]  # not what would fail again
    assert marker.read_text() == "once"
    trace = (tmp_path / "failed" / f"scene-{tasks[2].key}.log").read_text()
    assert "RuntimeError: no luck" in trace
    summary = store.summary(tasks[1])["summary"]
    assert summary == {
        "threads": max(1, torch.get_num_threads() // 2),
        "inputs": [first.key],
    }
    at_work = most = 0
    for event in events:
        at_work += (event.state == "running") - (event.state in ("done", "failed"))
        most = max(most, at_work)
    assert most == 2


def test_what_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be sent to workers"):
        WorkerPool(Store(tmp_path / "store"), lambda task, inputs, out: {}, 2)


def test_number_of_workers_is_checked() -> None:
    with pytest.raises(InputError, match="workers must be 1 to 256, got 0"):
        config_from(tiny.grid(workers=0))
