"""The loop: repeatable, resumable after a kill, the same over processes."""

import json
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import fsdp

from sightline.errors import Cancelled, FileFormatError, InputError, TrainingError
from sightline.run import RunFolder
from sightline.training.engine import LAST, train
from sightline.training.state import load_state
from sightline.training.task import ParameterGroup
from tests.training.processes import processes
from tests.training.toy import Toy, settings


def rows(folder: Path, kind: str = "train") -> list[str]:
    """The lines of a log without the speed, which no two runs share."""
    text = (folder / "logs" / f"{kind}.csv").read_text(encoding="utf-8")
    lines = [line.split(",") for line in text.splitlines()]
    kept = [i for i, name in enumerate(lines[0]) if name != "items_per_second"]
    return [",".join(line[i] for i in kept) for line in lines]


def same_state(one: Path, other: Path, tolerance: float = 0.0) -> None:
    first, second = (load_state(folder / LAST) for folder in (one, other))
    assert first["step"] == second["step"]
    for name, value in first["task"].items():
        torch.testing.assert_close(value, second["task"][name], rtol=0, atol=tolerance)


def test_a_run_leaves_logs_pictures_an_export_and_a_report(tmp_path: Path) -> None:
    done: list[float] = []
    train(
        Toy(settings(loggers="tensorboard")),
        tmp_path / "run",
        progress=lambda stage, now, total: done.append(now / total),
        command="sightline train toy",
    )
    folder = RunFolder.open(tmp_path / "run")
    assert folder.state["status"] == "done"
    assert folder.state["exports"] == ["checkpoints/toy.pt"]
    assert done[-1] == 1.0
    assert len(rows(folder.path)) == 9
    assert [line.split(",")[0] for line in rows(folder.path, "validation")] == [
        "step",
        "0",
        "4",
        "8",
    ]
    assert len(list(folder.file("pictures").glob("step-*/w.png"))) == 3
    assert list(folder.file("logs", "tensorboard").iterdir())
    page = folder.file("report.html").read_text(encoding="utf-8")
    assert "sightline train toy" in page
    assert page.count("<svg") >= 3  # curves
    assert page.count("data:image/jpeg") == 2  # before and after
    metrics = folder.state["metrics"]
    assert metrics["validation"]["start"]["step"] == 0
    assert metrics["validation"]["last"]["step"] == 8


def test_training_learns_and_the_average_is_what_is_exported(tmp_path: Path) -> None:
    task = Toy(settings(steps=200, ema=0.5, log_every=50, val_every=0, lr=3e-2), dropout=0.0)
    train(task, tmp_path)
    metrics = RunFolder.open(tmp_path).state["metrics"]["validation"]
    assert metrics["last"]["error"] < 0.5 * metrics["start"]["error"]
    content = load_state(tmp_path / LAST)
    exported = torch.load(tmp_path / "checkpoints" / "toy.pt", weights_only=True)
    for name, value in exported.items():
        assert torch.equal(value, content["average"][f"network.{name}"])
        assert not torch.equal(value, content["task"][f"network.{name}"])


def test_same_seed_same_run_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(Toy(settings(seed=seed)), tmp_path / name)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert rows(tmp_path / "a") != rows(tmp_path / "c")
    same_state(tmp_path / "a", tmp_path / "b")


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"ema": 0.9, "accumulate": 2, "clip": 1.0, "log_every": 2}
    train(Toy(settings(**changes)), tmp_path / "whole")
    words = ["-m", "tests.training.toy_run", str(tmp_path / "killed"), "6", json.dumps(changes)]
    with processes(words, expected=-signal.SIGKILL):
        pass
    log = tmp_path / "killed" / "logs" / "train.csv"
    assert RunFolder.open(tmp_path / "killed").state["status"] == "running"
    with log.open("a") as file:  # what a kill in the middle of a row leaves
        file.write("6,0.12")
    train(Toy(settings(**changes)), tmp_path / "killed", resume=True)
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    assert rows(tmp_path / "whole", "validation") == rows(tmp_path / "killed", "validation")
    same_state(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp",
        pytest.param(
            "fsdp",
            marks=pytest.mark.skipif(
                not hasattr(fsdp, "fully_shard"), reason="--strategy fsdp needs torch 2.6"
            ),
        ),
    ],
)
def test_two_processes_make_the_step_of_one_with_twice_the_batch(
    tmp_path: Path, strategy: str
) -> None:
    changes: dict[str, Any] = {"steps": 3, "clip": 1.0, "ema": 0.5}
    plain = json.dumps({**changes, "dropout": 0.0, "devices": 2, "strategy": strategy})
    with processes(["-m", "tests.training.toy_run", str(tmp_path / "two"), "0", plain], 2):
        train(Toy(settings(batch_size=8, **changes), dropout=0.0), tmp_path / "one")
        halves = settings(batch_size=4, accumulate=2, **changes)
        train(Toy(halves, dropout=0.0), tmp_path / "halves")
    same_state(tmp_path / "one", tmp_path / "two", 1e-6)
    same_state(tmp_path / "one", tmp_path / "halves", 1e-6)
    assert rows(tmp_path / "two")[0] == rows(tmp_path / "one")[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on one core
def test_data_workers_change_nothing(tmp_path: Path) -> None:
    train(Toy(settings()), tmp_path / "here")
    train(Toy(settings(num_workers=2)), tmp_path / "workers")
    assert rows(tmp_path / "here") == rows(tmp_path / "workers")


def test_a_request_to_stop_saves_and_the_run_resumes(tmp_path: Path) -> None:
    train(Toy(settings()), tmp_path / "whole")
    asked: list[int] = []

    def stop() -> bool:
        asked.append(0)
        return len(asked) == 2

    with pytest.raises(Cancelled, match="after step 2 of 8"):
        train(Toy(settings()), tmp_path / "stopped", should_stop=stop)
    assert RunFolder.open(tmp_path / "stopped").state["status"] == "cancelled"
    train(Toy(settings()), tmp_path / "stopped", resume=True)
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")
    same_state(tmp_path / "whole", tmp_path / "stopped")


def test_ctrl_c_ends_after_the_step_and_leaves_signals_as_they_were(tmp_path: Path) -> None:
    class Pressed(Toy):
        def after_step(self, step: int) -> None:
            super().after_step(step)
            if step == 3:
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Cancelled, match="after step 4 of 8"):
        train(Pressed(settings()), tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert load_state(tmp_path / LAST)["step"] == 4


def test_it_trains_outside_the_main_thread(tmp_path: Path) -> None:
    worker = threading.Thread(target=train, args=(Toy(settings()), tmp_path))
    worker.start()
    worker.join()
    assert RunFolder.open(tmp_path).state["status"] == "done"


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    train(Toy(settings()), tmp_path / "run")
    with pytest.raises(InputError, match="continue it with --resume"):
        train(Toy(settings()), tmp_path / "run")
    with pytest.raises(InputError, match="--resume keeps the run's options: --lr is 0.01"):
        train(Toy(settings(lr=0.5)), tmp_path / "run", resume=True)
    before = rows(tmp_path / "run")
    train(Toy(settings(num_workers=1)), tmp_path / "run", resume=True)  # finished: nothing to do
    assert rows(tmp_path / "run") == before
    train(Toy(settings(lr=0.5)), tmp_path / "run", overwrite=True)
    assert rows(tmp_path / "run") != before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="not empty and is not a sightline run"):
        train(Toy(settings()), tmp_path / "other", overwrite=True)


def test_nothing_starts_before_the_task_agrees(tmp_path: Path) -> None:
    class Empty(Toy):
        def check(self) -> None:
            raise InputError("there are no pictures")

    with pytest.raises(InputError, match="no pictures"):
        train(Empty(settings()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    class Bad(Toy):
        def forward(self, batch: Any, step: int) -> dict[str, torch.Tensor]:
            parts = super().forward(batch, step)
            return parts | {"loss": parts["loss"] * (float("nan") if step == 4 else 1)}

    with pytest.raises(TrainingError, match="not finite at step 5"):
        train(Bad(settings()), tmp_path)
    assert load_state(tmp_path / LAST)["step"] == 3
    assert RunFolder.open(tmp_path).state["status"] == "failed"


def test_groups_have_their_rates_and_clips(tmp_path: Path) -> None:
    class Grouped(Toy):
        def parameter_groups(self) -> list[ParameterGroup]:
            first, last = list(self.network[0].parameters()), list(self.network[3].parameters())
            return [
                ParameterGroup(name="first", parameters=first, lr_scale=0.0, clip="a"),
                ParameterGroup(name="last", parameters=last, decay=False, clip="b"),
            ]

    task = Grouped(settings())
    before = [value.clone() for value in task.network.state_dict().values()]
    train(task, tmp_path)
    after = list(task.network.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(before[:2], after[:2], strict=True))
    assert not torch.equal(before[2], after[2])
    assert {"grad_norm_a", "grad_norm_b"} <= set(rows(tmp_path)[0].split(","))


def test_endless_data_needs_steps(tmp_path: Path) -> None:
    class Endless(Toy):
        epoch_size = 0

    with pytest.raises(InputError, match="give --steps"):
        train(Endless(settings(steps=None, epochs=2)), tmp_path)
    train(Toy(settings(steps=None, epochs=3)), tmp_path / "epochs")
    assert load_state(tmp_path / "epochs" / LAST)["step"] == 12


def test_a_hostile_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        train(Toy(settings()), tmp_path, should_stop=lambda: True)
    torch.save({"format": "sightline-training", "step": Path("x")}, tmp_path / LAST)
    with pytest.raises(InputError, match=re.escape("cannot be read as a training checkpoint")):
        train(Toy(settings()), tmp_path, resume=True)


def test_a_flipped_bit_of_a_checkpoint_is_seen(tmp_path: Path) -> None:
    train(Toy(settings()), tmp_path)
    data = bytearray((tmp_path / LAST).read_bytes())
    state = load_state(tmp_path / LAST)["task"]
    weight = max(state.values(), key=lambda t: t.numel()).contiguous().numpy().tobytes()
    data[data.find(weight) + len(weight) // 2] ^= 1
    (tmp_path / LAST).write_bytes(data)
    with pytest.raises(FileFormatError, match="start again with --overwrite"):
        load_state(tmp_path / LAST)
