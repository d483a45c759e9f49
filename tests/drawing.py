"""Draws digits with a mouse on the page of docs/draw_digit.py, in Chromium, for its tests.

    python rnn_mnist.py && python tests/drawing.py

makes docs/evidence/draw_digit.png, the README's picture of the page, and prints how many digits of
each kind are read correctly. It needs Chromium or Chrome, and tests/requirements.txt.
"""

import contextlib
import itertools
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent

# No requests of Chromium's own, which are not the page's. As root it runs only without its sandbox.
QUIET = ["--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]
if getattr(os, "getuid", int)() == 0 and os.name == "posix":
    QUIET.append("--no-sandbox")


def curve(x, y, width, height, start, end):
    """Returns points on the ellipse around (x, y), from one angle to another.

    Angles are in degrees, 0 to the right, 90 downwards, as on a screen.
    """
    number = max(4, round(abs(end - start) / 15))
    angles = [math.radians(start + (end - start) * n / number) for n in range(number + 1)]
    return [(x + width / 2 * math.cos(angle), y + height / 2 * math.sin(angle))
            for angle in angles]


# The ten digits as MNIST's writers wrote them, each a list of strokes, each stroke a list of points
# in a box of 0 to 100. They were written down before any of them was tried, and a digit that is
# misclassified stays as it is.
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


SIZES = {"large": 200, "small": 105, "tiny": 75}  # on a paper of 300
KINDS = [*itertools.product(SIZES, ["middle", "corner"])]
START = 600  # s until a program that does not start is ended, however slow the machine


@contextlib.contextmanager
def served(folder, env=os.environ, browser="-c pass", **kwargs):
    """Runs docs/draw_digit.py in a folder with a model; yields its process and its address.

    It opens the Python program `browser` in place of a browser; by default, that does nothing. If
    the program ends, its error message takes the place of the address.
    """
    command = [sys.executable, str(ROOT / "docs" / "draw_digit.py")]
    python = pathlib.Path(sys.executable).as_posix()
    env = {**env, "BROWSER": f'"{python}" {browser} %s'}
    with subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, **kwargs) as process:
        limit = threading.Timer(START, process.kill)
        limit.start()
        try:
            line = process.stdout.readline()
            address = re.search(r"http:\S+", line)[0] if line else process.stderr.read()
            limit.cancel()
            yield process, address
        finally:
            limit.cancel()
            process.kill()


@contextlib.contextmanager
def browser():
    """Yields a Chromium without a window, or None if there is none."""
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        names = ["chromium", "chromium-browser", "google-chrome", "chrome", "msedge"]
        found = own if os.path.exists(own) else next(filter(None, map(shutil.which, names)), None)
        if found is None:
            yield None
            return
        chromium = playwright.chromium.launch(executable_path=found, args=QUIET,
                                              ignore_default_args=["--hide-scrollbars"])
        yield chromium
        chromium.close()


def opened(page, address):
    """Opens the address and waits for the paper; returns its canvas."""
    page.goto(address)
    paper = page.locator("canvas")
    paper.wait_for()
    return paper


def draw(page, strokes, size="large", place="middle"):
    """Clears the paper, which measures 300 by 300, and draws strokes on it with a mouse."""
    side = SIZES[size]
    corner = {"middle": 150 - side / 2, "corner": 300 - 0.95 * side}[place]  # some cross its edge
    page.get_by_role("button", name="Clear").click()
    box = page.locator("canvas").bounding_box()
    scale = box["width"] / 300
    for stroke in strokes:
        for n, (x, y) in enumerate(stroke):
            page.mouse.move(box["x"] + scale * (corner + x * side / 100),
                            box["y"] + scale * (corner + y * side / 100))
            if n == 0:
                page.mouse.down()
        page.mouse.up()


def reading(page):
    """Returns the answer, the image [28, 28] and the probabilities, [10] or [0]."""
    page.locator(".answer[aria-busy=false]").wait_for()
    image = np.zeros([28, 28], np.float32)
    cells, texts = page.evaluate("""[
        [...document.querySelectorAll("svg rect[fill=white]")].map(cell => [
            cell.y.baseVal.value, cell.x.baseVal.value - 3, cell.getAttribute("fill-opacity")]),
        [...document.querySelectorAll("svg text")].map(text => text.textContent)]""")
    for row, column, brightness in cells:
        image[int(row), int(column)] = brightness
    shown = [float(text[:-1]) / 100 for text in texts if text.endswith("%")]  # in the digits' order
    return page.get_by_role("status").first.inner_text(), image, np.array(shown)


def main():
    with served(".") as (_, address), browser() as chromium:
        page = chromium.new_page(viewport={"width": 1100, "height": 800}, device_scale_factor=1.5)
        opened(page, address)
        for kind in KINDS:
            read = []
            for strokes in DIGITS:
                draw(page, strokes, *kind)
                read.append(int(reading(page)[2].argmax()))
            correct = sum(digit == n for n, digit in enumerate(read))
            print(f"{', '.join(kind)}: {correct} of 10 read correctly, the ten as {read}")
        draw(page, DIGITS[5])
        reading(page)
        page.screenshot(path=ROOT / "docs" / "evidence" / "draw_digit.png",
                        clip={"x": 0, "y": 0, "width": 1100, "height": 670})


if __name__ == "__main__":
    main()
