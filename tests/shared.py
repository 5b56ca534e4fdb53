"""Small trainings by several workers: those of test_workers.py.

``python shared.py SETTINGS`` is a worker, or trains alone without torchrun's environment. SETTINGS
is JSON: the model, the recipe, and the threads of each worker by rank. It prints the
fingerprints of the weights and the history.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

PLAIN = {
    "epochs": 2,
    "batch_size": 40,
    "learning_rate": 0.02,
    "momentum": 0.9,
    "dropout": 0.3,
    "softmax_before_loss": False,
}
DISTORTED = {"rotation": 8, "shift": 1.5, "scale": 0.08, "shear": 0.1, "elastic": 0.7}
FULL = PLAIN | {
    "optimizer": "adamw",
    "weight_decay": 0.1,
    "schedule": "one_cycle",
    "averaging": 0.9,
    "augmentation": DISTORTED,
    "softmax_before_loss": True,
}
OF_TEACHER = PLAIN | {"augmentation": DISTORTED, "epochs": 1}
TAUGHT = PLAIN | {
    "distillation": {"teachers": 2, "recipe": OF_TEACHER, "temperature": 2.0, "weight": 0.6}
}
RECIPES = {"plain": PLAIN, "full": FULL, "taught": TAUGHT}
IMAGES = 83  # the last batch has 3, so some workers have none


def trained(folder: Path, model: str, recipe: str, threads: list[int], before=None) -> list:
    """What each worker has at the end. ``before`` has the start of some of their commands."""
    from conftest import ROOT, environment, free_port

    size = str(len(threads))
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": size}
    own |= {"LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    own |= {"TORCHELASTIC_RUN_ID": "shared"} if len(threads) > 1 else {}
    (folder / ".dvc/tmp/stages").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, json.dumps([model, RECIPES[recipe], threads])]
    processes = [
        subprocess.Popen(
            [*(before or {}).get(rank, []), *command],
            cwd=folder,
            env=environment(own | {"RANK": str(rank)} | ({"WORKERS_JOINED": "1"} if rank else {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(len(threads))
    ]
    said = [process.communicate(timeout=600) for process in processes]
    assert not any(process.returncode for process in processes), said
    return [json.loads(output.splitlines()[-1]) for output, _ in said]


def main(model: str, recipe: dict, threads: list[int]) -> None:
    from stages.arithmetic import numerics
    from stages.base import params
    from stages.learn import meeting
    from stages.learn.resume import Training
    from study.ingredients import drawn

    generator = numerics.configure(threads[int(os.environ["RANK"])], 3)
    name = meeting.meet(model)
    parts = {"train": drawn(IMAGES, 0), "test": drawn(33, 1)}
    training = Training("shared", name, parts, params.Recipe(**recipe), "cpu", generator)
    for _ in training.epochs():
        pass
    print(json.dumps([training.state.weights, training.state.history]), flush=True)


if __name__ == "__main__":
    from stages.learn.meeting import end_with

    end_with(lambda: main(*json.loads(sys.argv[1])))
