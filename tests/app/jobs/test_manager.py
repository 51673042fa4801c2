import json
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sightline.app.jobs.manager import Jobs, new_owner
from sightline.app.jobs.record import read_job, write_job
from sightline.app.jobs.request import Busy, NotFound, Request
from sightline.datasets.synthetic import make_scene, write_scene
from sightline.errors import InputError
from tests.app.served import demo, finish

Open = Callable[..., Jobs]


def test_a_job_from_submission_to_results(open_jobs: Open, owner: str) -> None:
    jobs = open_jobs()
    job = jobs.submit(owner, demo(steps=5))
    assert job.command == "sightline demo --steps=5 -o scene"
    fractions = [one.progress.fraction for one in jobs.updates(owner, job.id)]
    assert fractions == sorted(fractions)
    assert len(set(fractions)) > 2
    done = jobs.get(owner, job.id)
    assert (done.state, done.exit_code, done.error) == ("done", 0, None)
    assert done.result == {"path": "output/scene"}, "no path of the server is shown"
    assert list(jobs.results(owner, job.id)) == ["scene/run.json", "scene/splats.ply"]
    assert jobs.log(owner, job.id) == "told by a.png\n"
    assert jobs.run_folder(owner, job.id).name == "scene"
    assert read_job(jobs.root / job.id) == done


@pytest.mark.parametrize(
    ("seed", "code", "text"),
    [
        (1, 1, "it went wrong at a.png"),
        (2, None, "its process died (signal 11); what was finished is kept"),
        (4, 4, "it went wrong at a.png: about 0.9 GB of "),
    ],
)
def test_failures_are_told_and_the_queue_goes_on(
    open_jobs: Open, owner: str, seed: int, code: int | None, text: str
) -> None:
    jobs = open_jobs()
    failed = jobs.submit(owner, demo(seed=seed))
    after = jobs.submit(owner, demo())
    failed = finish(jobs, failed)
    assert (failed.state, failed.exit_code) == ("failed", code)
    assert failed.error is not None
    assert failed.error.startswith(text)
    assert str(jobs.root) not in failed.error
    assert finish(jobs, after).state == "done"


@pytest.mark.parametrize("seed", [0, 9])
def test_cancel_stops_what_runs_whether_it_listens_or_not(
    open_jobs: Open, owner: str, seed: int
) -> None:
    jobs = open_jobs()
    job = jobs.submit(owner, demo(steps=100_000, seed=seed))
    for now in jobs.updates(owner, job.id):
        if now.progress.stage:
            break
    jobs.cancel(owner, job.id)
    ended = finish(jobs, job)
    assert (ended.state, ended.exit_code) == ("cancelled", 3)
    assert ended.error == "cancelled; what was finished is kept"
    assert finish(jobs, jobs.submit(owner, demo())).state == "done"


def test_a_waiting_job_is_cancelled_without_a_start(open_jobs: Open, owner: str) -> None:
    jobs = open_jobs()
    first = jobs.submit(owner, demo(steps=100_000))
    second = jobs.submit(owner, demo())
    third = jobs.submit(owner, demo())
    assert [jobs.position(jobs.get(owner, j.id)) for j in (second, third)] == [1, 2]
    assert jobs.cancel(owner, second.id).state == "cancelled"
    assert jobs.position(jobs.get(owner, third.id)) == 1
    with pytest.raises(Busy, match="has not ended"):
        jobs.delete(owner, first.id)
    jobs.cancel(owner, first.id)
    assert finish(jobs, third).state == "done"
    assert jobs.get(owner, second.id).attempts == 0


def test_nobody_sees_another_users_jobs_and_files(open_jobs: Open, owner: str) -> None:
    jobs, other = open_jobs(), new_owner()
    job = finish(jobs, jobs.submit(owner, demo()))
    for call in (jobs.get, jobs.cancel, jobs.resume, jobs.delete, jobs.results, jobs.log):
        with pytest.raises(NotFound, match="there is no job"):
            call(other, job.id)
    with pytest.raises(NotFound):
        jobs.submit(other, Request(kind="render", scene=job.id))
    with pytest.raises(NotFound):
        jobs.submit(other, Request(kind="export", options={"to": "ply"}, inputs=[f"{job.id}/x"]))
    assert jobs.jobs_of(other) == []
    jobs.delete(owner, job.id)
    assert not (jobs.root / job.id).exists()


def test_a_restarted_server_goes_on(open_jobs: Open, owner: str) -> None:
    jobs = open_jobs()
    running = jobs.submit(owner, demo(steps=100_000))
    waiting = jobs.submit(owner, demo())
    while jobs.get(owner, running.id).state != "running":
        time.sleep(0.01)
    jobs.close()
    assert read_job(jobs.root / running.id).state == "running"
    assert read_job(jobs.root / waiting.id).state == "queued"
    # A shorter job in the same place: the second attempt has an end.
    folder = jobs.root / running.id
    record = read_job(folder)
    write_job(folder, replace(record, options={"steps": 4}))

    jobs = open_jobs()
    assert finish(jobs, running).state == "done"
    assert finish(jobs, waiting).state == "done"
    again = jobs.get(owner, running.id)
    assert again.attempts == 2
    assert json.loads((folder / "words.json").read_text())[-1] == "--resume"
    assert json.loads((jobs.root / waiting.id / "words.json").read_text())[-1] != "--resume"


def test_what_cannot_go_on_by_itself_is_interrupted_and_resumed(
    open_jobs: Open, owner: str
) -> None:
    jobs = open_jobs()
    scene = finish(jobs, jobs.submit(owner, demo()))
    video = finish(jobs, jobs.submit(owner, Request(kind="render", scene=scene.id)))
    often = finish(jobs, jobs.submit(owner, demo()))
    jobs.close()
    for job, attempts in ((video, 1), (often, 3)):
        write_job(jobs.root / job.id, replace(job, state="running", attempts=attempts))

    jobs = open_jobs()
    for job in (video, often):
        left = jobs.get(owner, job.id)
        assert left.state == "interrupted"
        assert left.error == "the server stopped while it ran; resume it"
    again = finish(jobs, jobs.resume(owner, video.id))
    assert (again.state, again.attempts) == ("done", 2)
    assert json.loads((jobs.root / video.id / "words.json").read_text())[-1] == "--overwrite"
    with pytest.raises(InputError, match="nothing left"):
        jobs.resume(owner, video.id)


def test_a_probe_continues_step_by_step(open_jobs: Open, owner: str, photo: Path) -> None:
    jobs = open_jobs()
    photos = [jobs.uploads.adopt(owner, photo, f"{n}.png").id for n in range(2)]
    request = Request(kind="probe-demo", options={"until": "cloud"}, inputs=photos)
    job = finish(jobs, jobs.submit(owner, request))
    assert "--until=cloud" in job.command
    job = finish(jobs, jobs.resume(owner, job.id, {"until": "splats", "steps": 16}))
    words = json.loads((jobs.root / job.id / "words.json").read_text())
    assert {"--until=splats", "--steps=16"} <= set(words)
    with pytest.raises(InputError, match="steps must be 16 or more"):
        jobs.resume(owner, job.id, {"steps": 2})


@pytest.mark.parametrize("kind", ["reconstruct", "probe-demo", "probe-run"])
def test_pictures_may_come_with_the_points_of_their_scene(
    open_jobs: Open, owner: str, photo: Path, tmp_path: Path, kind: str
) -> None:
    jobs = open_jobs()
    write_scene(make_scene(2, 16, 16, kind="simple", num_points=20), tmp_path / "scene")
    sent = [jobs.uploads.adopt(owner, photo, f"{n}.png").id for n in range(2)]
    sent.append(jobs.uploads.adopt(owner, tmp_path / "scene" / "points.ply", "points.ply").id)
    options = {"features": ["iuvrgb"]} if kind == "probe-run" else {}
    job = finish(jobs, jobs.submit(owner, Request(kind=kind, options=options, inputs=sent)))
    assert (jobs.root / job.id / "inputs" / "points.ply").is_file()


def test_a_finished_trainings_weights_are_its_owners_to_choose(
    open_jobs: Open, owner: str, photo: Path
) -> None:
    jobs = open_jobs()
    photos = [jobs.uploads.adopt(owner, photo, f"{n}.png").id for n in range(2)]
    asked = Request(kind="train-dino", files={"data": photos})
    job = finish(jobs, jobs.submit(owner, asked))
    made = "run/checkpoints/splatt3r.safetensors"
    jobs.board.put(job, state="done", result={"exports": [f"output/{made}"]})
    offered = jobs.trained_weights(owner)
    assert list(offered) == [f"{job.id}/{made}"]
    assert offered[f"{job.id}/{made}"].startswith(f"splatt3r.safetensors of {job.title}")
    assert jobs.trained_weights(new_owner()) == {}
    jobs.board.put(jobs.get(owner, job.id), state="cancelled")
    assert jobs.trained_weights(owner) == {}


def test_a_report_is_added_to_its_grid(open_jobs: Open, owner: str, photo: Path) -> None:
    jobs = open_jobs()
    photos = [jobs.uploads.adopt(owner, photo, f"{n}.png").id for n in range(2)]
    options = {"features": ["iuvrgb"]}
    grid = finish(
        jobs, jobs.submit(owner, Request(kind="probe-run", options=options, inputs=photos))
    )
    folder = jobs.root / grid.id
    words = json.loads((folder / "words.json").read_text())
    # Photos are one scene: their folder, never one scene a photo.
    assert words[:4] == ["probe", "run", f"{folder}/inputs", '--features=["iuvrgb"]']
    assert grid.command == "sightline probe run photos/ '--features=[\"iuvrgb\"]' -o grid"
    with pytest.raises(InputError, match=r"has no grid \(yet\)"):
        jobs.submit(owner, Request(kind="probe-report", scene=grid.id))
    (folder / "output" / "grid" / "grid.json").write_text("{}")
    report = finish(jobs, jobs.submit(owner, Request(kind="probe-report", scene=grid.id)))
    words = json.loads((jobs.root / report.id / "words.json").read_text())
    assert words == ["probe", "report", "-o", f"{folder}/output/grid", "--json"]
    assert report.command == "sightline probe report -o grid"


def test_a_bank_is_scored_on_a_file_and_its_pictures(
    open_jobs: Open, owner: str, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "instances.json").write_text("{}")
    (tmp_path / "bank.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    jobs = open_jobs()
    annotated, bank = (
        [jobs.uploads.adopt(owner, path).id for path in paths]
        for paths in ((tmp_path / "instances.json", photo), (tmp_path / "bank.safetensors",))
    )
    with pytest.raises(InputError, match="needs a file for --bank"):
        jobs.submit(owner, Request(kind="segment-evaluate", files={"dataset": annotated}))
    files = {"dataset": annotated, "bank": bank}
    job = finish(jobs, jobs.submit(owner, Request(kind="segment-evaluate", files=files)))
    words = json.loads((jobs.root / job.id / "words.json").read_text())
    home = f"{jobs.root / job.id}/files"
    assert f"--dataset={home}/dataset/instances.json" in words
    assert f"--bank={home}/bank/bank.safetensors" in words


def test_queues_have_bounds(open_jobs: Open, owner: str) -> None:
    jobs = open_jobs(owner_queued=2, queued=3)
    running = jobs.submit(owner, demo(steps=100_000))
    while jobs.get(owner, running.id).state != "running":
        time.sleep(0.01)
    for _ in range(2):
        jobs.submit(owner, demo())
    with pytest.raises(Busy, match="2 of them yours"):
        jobs.submit(owner, demo())
    jobs.submit(new_owner(), demo())
    with pytest.raises(Busy, match="3 jobs wait"):
        jobs.submit(new_owner(), demo())


def test_one_server_a_root(open_jobs: Open) -> None:
    jobs = open_jobs()
    with pytest.raises(InputError, match="another process is working in"):
        open_jobs()
    jobs.close()
    open_jobs()


def test_refused_requests_leave_nothing(open_jobs: Open, owner: str, photo: Path) -> None:
    jobs = open_jobs()
    upload = jobs.uploads.adopt(owner, photo).id
    before = sorted(jobs.root.rglob("*"))
    for request, text in (
        (Request(kind="magic"), 'no kind of job "magic"'),
        (
            Request(kind="reconstruct"),
            "takes 1 to 5000 files (picture, video, text, scene), got none; add some",
        ),
        (Request(kind="demo", inputs=[upload]), "takes no inputs"),
        (Request(kind="demo", scene="x"), "takes no scene"),
        (Request(kind="render"), "needs a scene"),
        (Request(kind="probe-report"), "needs a grid"),
        (Request(kind="train-dino", options={"epochs": 1}), "train-dino needs a file for --data"),
        (Request(kind="demo", options={"steps": "3"}), "option steps: Input should be a valid int"),
        (Request(kind="demo", options={"output": "/etc"}), "demo has no option output"),
        (Request(kind="reconstruct", inputs=[upload], options={"masks": "../.."}), "give it under"),
        (Request(kind="reconstruct", inputs=[upload], options={"fps": 0.0}), "--fps must be above"),
        (Request(kind="reconstruct", inputs=[upload], options={"export": "obj"}), "no export"),
        (Request(kind="features", inputs=[upload]), "features needs a value for --backbone"),
        (
            Request(kind="features", inputs=[upload], options={"backbone": "hf:../../x"}),
            "option backbone: expected up to",
        ),
        (
            Request(kind="features", inputs=[upload], options={"backbone": "/etc/passwd"}),
            "option backbone: expected up to",
        ),
        (
            Request(kind="models-check", inputs=[upload]),
            "expected weights, but photo.png is a pict",
        ),
        (Request(kind="reconstruct", inputs=["weights:../x.pt"]), 'no file of weights "../x.pt"'),
        (
            Request(kind="segment-predict", inputs=[upload], files={"bank": [upload, upload]}),
            "bank takes one file, got 2",
        ),
    ):
        with pytest.raises((InputError, NotFound)) as refused:
            jobs.submit(owner, request)
        assert text in str(refused.value)
    assert sorted(jobs.root.rglob("*")) == before


def test_files_keep_their_names_below_the_job(open_jobs: Open, owner: str, photo: Path) -> None:
    jobs = open_jobs()
    names = ["../../a b.png", "C:\\x\\a b.png", "deep/.hidden/c.PNG"]
    photos = [jobs.uploads.adopt(owner, photo, name).id for name in names]
    masks = [jobs.uploads.adopt(owner, photo, "m.png").id]
    job = jobs.submit(owner, Request(kind="reconstruct", inputs=photos, files={"masks": masks}))
    assert job.inputs == ("inputs/a_b.png", "inputs/C_/x/a_b.png", "inputs/deep/hidden/c.PNG")
    assert job.files == {"masks": "files/masks"}
    folder = jobs.folder(owner, job.id)
    assert all((folder / path).is_file() for path in job.inputs)
    finish(jobs, job)
    words = json.loads((folder / "words.json").read_text())
    assert f"--masks={folder}/files/masks" in words
    assert words[1] == f"{folder}/inputs"


def test_weights_of_the_server_are_named_never_reached(
    open_jobs: Open, owner: str, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "models" / "vggt").mkdir(parents=True)
    file = tmp_path / "models" / "vggt" / "tiny.pt"
    file.write_bytes(b"PK\3\4")
    jobs = open_jobs()
    assert jobs.weights.rows() == [{"name": "vggt/tiny.pt", "size": 4}]
    upload = jobs.uploads.adopt(owner, photo).id
    request = Request(
        kind="reconstruct",
        inputs=[upload],
        options={"geometry": "vggt"},
        files={"checkpoint": ["weights:vggt/tiny.pt"]},
        force=True,
    )
    job = finish(jobs, jobs.submit(owner, request))
    assert job.weights == {"checkpoint": "vggt/tiny.pt"}
    words = json.loads((jobs.root / job.id / "words.json").read_text())
    assert f"--checkpoint={file}" in words


def test_damaged_records_are_left_alone(open_jobs: Open, owner: str) -> None:
    jobs = open_jobs()
    job = finish(jobs, jobs.submit(owner, demo()))
    jobs.close()
    whole = (jobs.root / job.id / "job.json").read_text()
    for text in ("", "[]", "{}", whole[:50], whole.replace(job.id, "20200101T000000-" + "0" * 16)):
        (jobs.root / job.id / "job.json").write_text(text)
        again = open_jobs()
        assert again.jobs_of(owner) == []
        again.close()


def test_loaded_networks_are_shown_and_given_back(open_jobs: Open, owner: str) -> None:
    jobs = open_jobs()
    finish(jobs, jobs.submit(owner, demo()))
    while any(row["busy"] for row in jobs.loaded()):
        time.sleep(0.01)
    (row,) = jobs.loaded()
    assert (row["lane"], row["loaded"]) == ("cpu", ["net"])
    assert row["memory"] > 1e6
    jobs.unload()
    assert jobs.loaded() == []
