import subprocess
import sys
from pathlib import Path

import pytest

from sightline.cli import VERBS, main
from sightline.cli.parser import record_from
from sightline.cli.reconstruct import parser
from sightline.options import ReconstructOptions


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


def test_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("--help") == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(verb, "--help") == 0
    assert f"usage: sightline {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["reconstrct"], 'no verb "reconstrct"; closest: reconstruct'),
        (
            ["reconstruct", "a", "-o", "b", "--fsp", "2"],
            'unknown option "--fsp"; did you mean --fps',
        ),
        (["reconstruct", "a", "-o", "b", "--fps", "fast"], '--fps: expected float, got "fast"'),
        (["reconstruct", "a", "-o", "b", "--geometry", "magic"], "--geometry: expected one of"),
        (["reconstruct", "a"], "give the output with -o"),
        (["reconstruct", "-o", "b"], "give at least one photo, folder or video"),
        (["reconstruct", "a", "-o", "b", "--steps", "0"], "--steps must be 1 or more, got 0"),
        (["reconstruct", "a", "-o", "b", "--features", "dinov9"], 'no backbone "dinov9"'),
        (["render", "nowhere", "-o", "a.mp4", "--size", "big"], "expected WIDTHxHEIGHT"),
        (["export", "nowhere"], "give the formats with --to"),
        (["export", "nowhere", "--to", "obj"], 'no export format "obj"'),
        (["export", "nowhere", "--to", "ply", "-o", "x"], "nowhere"),
        (["render", "nowhere", "-o", "a.mp4"], "is not a sightline run"),
    ],
)
def test_wrong_usage_is_one_sentence_and_code_2(
    words: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(*words) == 2
    shown = capsys.readouterr().err
    assert text in shown
    assert len(shown.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_yaml_gives_inputs_and_options(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("inputs: [photos]\noutput: scene\ntest_every: 8\nfps: 2.5\n")
    found = parser().parse_args(["--config", str(file), "--test-every", "4"])
    options = record_from(ReconstructOptions, found)
    assert found.inputs == ["photos"]
    assert found.output == "scene"
    assert (options.test_every, options.fps) == (4, 2.5)


def test_print_config_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("reconstruct", "a", "-o", "b", "--resolution", "320", "--print_config") == 0
    file = tmp_path / "run.yaml"
    file.write_text(capsys.readouterr().out)
    found = parser().parse_args(["--config", str(file)])
    assert found.resolution == 320
    assert found.inputs == ["a"]


def test_unknown_key_in_yaml_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("resolutoin: 320\n")
    assert code_of("reconstruct", "a", "-o", "b", "--config", str(file)) == 2
    assert 'unknown option "resolutoin"; did you mean --resolution' in capsys.readouterr().err


def test_doctor_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sightline", "doctor", "--json"], capture_output=True, check=True
    )
    assert b'"extras"' in done.stdout
