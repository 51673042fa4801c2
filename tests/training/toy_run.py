"""Run the toy task in a process of its own: ``python -m tests.training.toy_run FOLDER KILL RESUME``.

With ``KILL`` above 0 the process kills itself, as hard as can be, in the middle of that step. The
world is what the environment says (RANK, WORLD_SIZE, ...).
"""

import json
import os
import signal
import sys
from pathlib import Path

from sightline.training.engine import train
from tests.training.toy import Toy, settings


class Doomed(Toy):
    kill_at = 0

    def after_step(self, step: int) -> None:
        if step + 1 == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        super().after_step(step)


def main(folder: str, kill: str, changes: str) -> None:
    values = json.loads(changes)
    dropout = values.pop("dropout", 0.25)
    task = Doomed(settings(**values), dropout)
    task.kill_at = int(kill)
    train(task, Path(folder), resume=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
