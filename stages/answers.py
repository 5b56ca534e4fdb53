"""The answers of the networks about an image, in words and in 120 columns of a terminal."""

import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

from stages.base.params import TITLES
from stages.ink import Bytes
from stages.scoring import CalibrationBin

WIDTH = 120  # columns of the output
ANSWER = 41  # columns of a network's answer
BAR = 24  # columns of a probability of 1
SHADES = " ░▒▓█"  # of two pixels, one above the other
CLEAR = 0.5  # with a lower probability, no digit is the clear answer


@dataclass(frozen=True)
class Answer:
    """What a network says about an image."""

    probabilities: list[float]
    alike: CalibrationBin | None  # the test images with an answer about as sure

    @property
    def sure(self) -> float:
        return max(self.probabilities)

    @property
    def digit(self) -> int:
        return self.probabilities.index(self.sure)

    @property
    def clear(self) -> bool:
        return self.sure >= CLEAR


def picture(image: Bytes) -> list[str]:
    """An image (32, 32) in 16 lines of 32 characters."""
    pairs = image.reshape(16, 2, 32).mean(1)
    shades = SHADES if can_print(SHADES) else " .+#@"
    return ["".join(shades[round(grey / 255 * 4)] for grey in line) for line in pairs.tolist()]


def can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def verdict(name: str, answer: Answer) -> tuple[str, str]:
    """In the words of the page (`verdict` in draw.js): a head, and how much it is worth."""
    doubt = "" if answer.clear else "no clear answer, perhaps "
    text = f"{'over 99.9 %' if answer.sure > 0.9995 else percent(answer.sure)} sure."
    if part := answer.alike:
        text += f" Of {part.count:,} test images with an answer about as sure,"
        text += f" {percent(part.accuracy)} were right."
    return f"{TITLES[name]}: {doubt}{answer.digit}", text


def block(name: str, answer: Answer) -> list[str]:
    """The answer of a network, in lines of at most ANSWER characters."""
    full = "█" if can_print("█") else "#"
    head, text = verdict(name, answer)
    bars = [
        f"{digit} {full * round(BAR * share):{BAR}} {percent(share):>7}"
        for digit, share in enumerate(answer.probabilities)
    ]
    return [head, *bars, *textwrap.wrap(text, ANSWER)]


def shown(image: Bytes, found: Mapping[str, Answer]) -> str:
    """What the networks see, and beside it their answers, in WIDTH columns."""
    blocks = [block(name, answer) for name, answer in found.items()]
    fitting = (WIDTH - 32) // (ANSWER + 2)
    left, lines = picture(image), []
    for first in range(0, len(blocks), fitting):
        for texts in zip_longest(left, *blocks[first : first + fitting], fillvalue=""):
            lines.append("  ".join([f"{texts[0]:32}", *(f"{text:{ANSWER}}" for text in texts[1:])]))
        left = []
    return "\n".join(line.rstrip() for line in lines).rstrip()
