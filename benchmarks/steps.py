"""The steps that made LeNet-5's epoch faster, one at a time, and where the rest of the time goes.

.venv/bin/python -m benchmarks.steps [ROUNDS]
"""

import statistics
import sys
import time

from benchmarks import child
from stages.show.tables import table

STEPS = [
    "exact sums (`stages.networks.exact`), a batch at a time",
    "freed memory kept by the C library, fresh memory not filled",
    "convolutions 64 images at a time, whose numbers a processor keeps close (`exact.CACHED`)",
]


def epoch(step: int, profiled: bool) -> float:
    """Seconds of the second training epoch with the first ``step`` steps taken."""
    from stages.base import files, numerics, params, splits
    from stages.learn import training
    from stages.networks import exact, models

    # isort: split
    import torch

    settings = params.load()
    recipe = settings.recipes["documented"].lenet5
    if step < 1:
        numerics._keep_freed_memory = lambda: None
    if step < 2:
        exact.CACHED = recipe.batch_size
    data = models.examples(splits.load_split(files.DATA_PREPARED, "train"))
    generator = numerics.configure(settings.threads, settings.seed)
    torch.utils.deterministic.fill_uninitialized_memory = step < 1
    network = models.build("lenet5", recipe)
    state = training.begin(network, recipe, 10_000, generator)

    def run(number: int) -> None:
        order = training.random_order(len(data.labels), generator)
        training.train_epoch(state, data, order, recipe, number)

    run(2)
    started = time.perf_counter()
    run(3)
    seconds = time.perf_counter() - started
    if profiled:
        with torch.profiler.profile() as profile:
            run(4)
        events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        for event in events[:12]:
            print(f"{event.key} {event.self_cpu_time_total / total}")
    return seconds


def measure(rounds: int = 3) -> str:
    seconds: list[list[float]] = [[] for _ in STEPS]
    for _ in range(rounds):
        for step, values in enumerate(seconds):
            values.append(float(child("steps", str(step)).split()[-1]))
            print(f"step {step} {values[-1]:.2f} s", file=sys.stderr)
    medians = [f"{statistics.median(values):.2f}" for values in seconds]
    rows = [[STEPS[0], "", medians[0], ""]]
    for number in range(1, len(STEPS)):
        pairs = zip(seconds[number], seconds[number - 1], strict=True)
        ratio = statistics.median(after / before for after, before in pairs)
        rows.append([STEPS[number], medians[number - 1], medians[number], f"{ratio:.2f}"])
    *profile, _ = child("steps", str(len(STEPS) - 1), "profile").splitlines()
    parts = [line.rsplit(" ", 1) for line in profile]
    shares = [[f"`{key}`", f"{float(share):.1%}"] for key, share in parts]
    header = "a training epoch of LeNet-5 | before s | after s | ratio"
    return (
        f"{table(header, 'lrrr', rows)}\n\n"
        f"Medians of {rounds}. Where the time goes now (PyTorch's profiler, self time):\n\n"
        f"{table('operation | share', 'lr', shares)}\n"
    )


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["child"]:
        print(epoch(int(arguments[1]), profiled="profile" in arguments))
    else:
        print(measure(*map(int, arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
