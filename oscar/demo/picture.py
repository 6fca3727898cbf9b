"""A picture for the demo, drawn here so that it has a free licence: mountains over a lake at dusk.

Called by `oscar.demo`; needs nothing but zlib. The picture is dedicated to the public domain (CC0 1.0).
"""

from __future__ import annotations

import math
import random
import struct
import zlib
from collections.abc import Callable, Iterable
from operator import itemgetter

Colour = tuple[int, int, int]

SKY: tuple[Colour, ...] = ((23, 32, 68), (86, 78, 130), (214, 125, 112), (250, 197, 122))
HILLS: tuple[Colour, ...] = ((126, 96, 128), (84, 72, 112), (48, 50, 86), (22, 28, 52))


PHASES = 64
DARKER = (
    bytes(value * 3 // 5 for value in range(256)),
    bytes(value * 2 // 3 for value in range(256)),
    bytes(value * 4 // 5 + 12 for value in range(256)),
)
"""By channel, how light in the lake is what is so light above it."""


def between(colours: tuple[Colour, ...], place: float) -> Colour:
    """The colour at a place (0 to 1) of a gradient through some colours."""
    scaled = min(max(place, 0.0), 1.0) * (len(colours) - 1)
    index = min(int(scaled), len(colours) - 2)
    part = scaled - index
    red, green, blue = (
        round(a + (b - a) * part) for a, b in zip(colours[index], colours[index + 1], strict=True)
    )
    return red, green, blue


def ridge(width: int, chance: random.Random, base: float, height: float) -> list[float]:
    """A mountain ridge: for each column its height, by sines of falling size and rising pace."""
    waves = [
        (height / 1.9**octave, 2.1**octave * chance.uniform(1.5, 2.5), chance.uniform(0, math.tau))
        for octave in range(8)
    ]
    return [
        base
        + sum(size * math.sin(pace * math.tau * column / width / 2 + phase) for size, pace, phase in waves)
        for column in range(width)
    ]


def columns(width: int, height: int, seed: int) -> list[bytes]:
    """The picture as columns from left to right, each of RGB pixels from top to bottom."""
    chance = random.Random(seed)  # noqa: S311 - a landscape, no secret
    shore = round(height * 0.72)
    ridges = [
        ridge(width, chance, shore * (0.58 + 0.14 * depth), height * (0.075 - 0.012 * depth))
        for depth in range(len(HILLS))
    ]
    # Some columns of sky with grain, taken in turn by chance: as good as grain everywhere, and quick.
    skies = []
    for _ in range(48):
        sky = bytearray()
        for row in range(shore):
            grain = chance.uniform(-0.008, 0.008)
            sky += bytes(between(SKY, (row / shore) ** 1.15 + grain))
        skies.append(sky)
    sun_column, sun_row, radius = round(width * 0.64), round(shore * 0.5), round(height * 0.055)
    picked = ripples(shore, height - shore)
    drawn = []
    for column in range(width):
        pixels = bytearray(chance.choice(skies))
        across = abs(column - sun_column)
        if across < radius:
            half = math.isqrt(radius * radius - across * across)
            pixels[(sun_row - half) * 3 : (sun_row + half) * 3] = bytes((255, 236, 190)) * (2 * half)
        for colour, heights in zip(HILLS, ridges, strict=True):
            top = min(max(round(heights[column]), 0), shore)
            pixels[top * 3 :] = bytes(colour) * (shore - top)
        picks = picked[round((math.sin(column / 37) * 3 + 3) / 6 * PHASES)]
        drawn.append(bytes(pixels) + reflection(pixels, picks, height - shore))
    return drawn


def ripples(shore: int, depth: int) -> list[Callable[[bytearray], Iterable[int]]]:
    """For each phase of the waves: what picks, of a column above the shore, the pixels that the lake shows."""

    def source(row: int, phase: float) -> int:
        ripple = math.sin(row * 0.9 + phase) * (1 + row / 24)
        return min(max(shore - 1 - round(row * 1.6 + ripple), 0), shore - 1)

    turns = (6 * step / PHASES - 3 for step in range(PHASES + 1))
    # Two pixels more than there are: one alone would not come as a tuple.
    return [itemgetter(*(source(row, turn) for row in range(depth + 2))) for turn in turns]


def reflection(above: bytearray, picks: Callable[[bytearray], Iterable[int]], depth: int) -> bytes:
    """What the lake shows below a column: the column upside down, drawn out, darker, with ripples."""
    water = bytearray(depth * 3)
    for channel, darker in enumerate(DARKER):
        water[channel::3] = bytes(picks(above[channel::3])).translate(darker)[:depth]
    return bytes(water)


def draw(width: int = 1600, height: int = 1200, seed: int = 7) -> bytes:
    """Draw the picture.

    Args:
        width: pixels across.
        height: pixels down.
        seed: the same seed gives the same picture.

    Returns:
        a PNG file (https://www.w3.org/TR/png/), 8 bits per channel, RGB.
    """
    picture = bytearray(width * height * 3)
    stride = width * 3
    for column, pixels in enumerate(columns(width, height, seed)):
        for channel in range(3):
            picture[column * 3 + channel :: stride] = pixels[channel::3]
    # Filter 1 (the difference to the left) would pack better; 0 is what any reader takes fastest.
    rows = b"".join(b"\0" + picture[row * stride : (row + 1) * stride] for row in range(height))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"tEXt", b"Copyright\0Drawn by oscar demo; CC0 1.0, public domain"),
            chunk(b"IDAT", zlib.compress(rows, 6)),
            chunk(b"IEND", b""),
        )
    )
