"""Training in processes of its own, alone or several that know each other."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def processes(words: list[str], world: int = 1, expected: int = 0) -> Iterator[None]:
    """Run ``python WORDS`` as one or more ranks beside the block; all must end as expected."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(world):
        ranks = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "test",
        }
        started.append(
            subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env={**environment, **(ranks if world > 1 else {})},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        yield
        ended = [(process.communicate()[1], process.returncode) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.communicate()
    assert [code for _, code in ended] == [expected] * world, ended
