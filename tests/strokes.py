"""The ten digits as strokes of a pen: written down as MNIST's writers wrote them, before any of
them was tried. A digit that is read wrong stays as it is.

Each digit is a list of strokes, each stroke a list of points [x, y] in a box of 0 to 100, the pen
going straight from one to the next. `curve` gives the points of a part of an ellipse.
"""

import math


def curve(x, y, width, height, start, end):
    """Returns points on the ellipse around (x, y), from one angle to another.

    Angles are in degrees, 0 to the right, 90 downwards, as on a screen.
    """
    number = max(4, round(abs(end - start) / 15))
    angles = [math.radians(start + (end - start) * n / number) for n in range(number + 1)]
    return [(x + width / 2 * math.cos(angle), y + height / 2 * math.sin(angle))
            for angle in angles]


DIGITS = [
    [curve(50, 50, 62, 92, -60, -420)],
    [[(60, 3), (42, 97)]],
    [curve(48, 28, 52, 48, -170, 40) + [(18, 94), (84, 92)]],
    [curve(46, 27, 46, 46, -150, 80) + curve(46, 72, 56, 48, -80, 145)],
    [[(30, 6), (20, 52), (78, 48)], [(72, 8), (60, 97)]],
    [[(34, 8), (28, 46)] + curve(46, 67, 56, 56, -115, 145), [(34, 8), (80, 6)]],
    [[(68, 5), (40, 38)] + curve(47, 70, 46, 50, -165, -520)],
    [[(18, 12), (82, 8), (44, 97)]],
    [curve(52, 26, 42, 42, -40, -270) + curve(48, 72, 52, 46, -90, 270)
     + curve(52, 26, 42, 42, 90, -40)],
    [curve(48, 30, 50, 50, -20, -380) + [(62, 97)]],
]
