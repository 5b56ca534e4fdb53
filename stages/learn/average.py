"""A moving average of the weights over the steps of a training.

After B. T. Polyak, A. B. Juditsky, "Acceleration of stochastic approximation by averaging", SIAM
J. Control Optim. 30 (1992). Exponential, so that early weights are forgotten.
"""

import torch

from stages.networks.models import Network

FORGET = 9  # after n steps, at least 10 / (n + 9) of the average is the newest weights


@torch.no_grad()
def update(average: Network, network: Network, decay: float, step: int) -> None:
    """Move ``average`` towards ``network`` after ``step``, counted from 1.

    It keeps the share ``decay`` of itself. In the first steps it keeps less, so that the initial
    weights do not stay in it. Elementwise, so that it has the same bits everywhere.
    """
    share = max(1 - decay, (1 + FORGET) / (step + FORGET))
    for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
        mean.add_((weight - mean) * share)
