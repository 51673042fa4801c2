"""The page of a training, from logs alone."""

from pathlib import Path

from sightline.run import RunFolder
from sightline.training.log import MEAN, Table
from sightline.training.report import write_training_report


def test_the_mean_predictor_is_a_line_to_beat_and_no_measure(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {"task": "vggt"})
    log = Table(folder.file("logs", "validation.csv"), keep_until=0)
    for step, error in ((0, 40.0), (10, 5.25)):
        log.append({"step": step, "rotation": error, f"{MEAN}rotation": 28.125, "mean age": step})
    text = write_training_report(folder).read_text(encoding="utf-8")
    assert "mean 28.125" in text
    assert text.count('class="reference"') == 1
    assert "Mean rotation" not in text
    assert "Mean age" in text  # which has no measure beside it
