"""Speaks the worker's language without torch: what it does is chosen by ``demo --seed``.

0 works for ``--steps`` ticks, 1 fails, 2 is killed, 4 runs out of memory, 9 does not hear SIGINT.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

TICK = 0.02


class Stop(Exception):
    pass


def send(message: dict) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    state = {"busy": False}

    def act(number: int, frame: object) -> None:
        if state["busy"]:
            raise Stop

    signal.signal(signal.SIGINT, act)
    requests: list[dict] = []
    arrived = threading.Condition()

    def read() -> None:
        for line in sys.stdin:
            with arrived:
                requests.append(json.loads(line))
                arrived.notify()
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        with arrived:
            while not requests:
                arrived.wait(0.1)
            request = requests.pop(0)
        state["busy"] = True
        try:
            code, error = serve(request["words"], Path(request["folder"]))
        except Stop:
            code, error = 3, "cancelled; what was finished is kept"
        state["busy"] = False
        send({"exit": code, "error": error, "loaded": ["net"]})


def serve(words: list[str], folder: Path) -> tuple[int, str]:
    options = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    seed, steps = int(options.get("seed", 0)), int(options.get("steps", 3))
    (folder / "words.json").write_text(json.dumps(words))
    (folder / "stderr.txt").write_text(f"told by {folder}/inputs/a.png\n")
    (folder / "stdout.txt").write_text(json.dumps({"path": words[words.index("-o") + 1]}) + "\n")
    if seed == 9:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for step in range(steps):
        send({"stage": "splats", "done": step, "total": steps})
        time.sleep(TICK)
    if seed == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if seed in (1, 4):
        return seed, f"it went wrong at {folder}/inputs/a.png"
    scene = Path(words[words.index("-o") + 1])
    scene.mkdir(parents=True, exist_ok=True)
    (scene / "run.json").write_text("{}")
    (scene / "splats.ply").write_bytes(b"ply\n")
    return 0, ""


main()
