"""What :mod:`stages.arithmetic.reference` computes, compiled for this processor and on all cores.

A block is LANES images, or rows. The pixels of the block's images are neighbours in memory:
(blocks, C, H, W, LANES). So each instruction computes one pixel of LANES images. Functions named
`emit` write the code for a block. Its arguments are pointers to tensors, and numbers.
"""

from stages.arithmetic.kernels.convolution import convolve, convolve_back
from stages.arithmetic.kernels.layers import linear, linear_back
from stages.arithmetic.kernels.pixels import displacements, warp
from stages.arithmetic.kernels.probabilities import softmax

__all__ = ["convolve", "convolve_back", "displacements", "linear", "linear_back", "softmax", "warp"]
