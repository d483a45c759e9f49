"""docs/draw_digit.py: digits drawn on its page, in a real browser, are read by the network.

The network is trained on the sample's digits, which are not MNIST's, so most tests compare what the
page shows with what the same functions say of the same drawing, or of a clean one.
"""

import signal
import sys

import keras
import numpy as np
import pytest

from conftest import ROOT, TIMEOUT, environment, posix
from test_read_digit import model, read_digit

Image, ImageDraw = map(pytest.importorskip, ("PIL.Image", "PIL.ImageDraw"))
pytest.importorskip("gradio")
pytest.importorskip("playwright")

sys.path.insert(0, str(ROOT / "docs"))
import draw_digit
from drawing import DIGITS, browser, draw, opened, reading, served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    model.save(folder / "rnn_mnist.keras")
    return folder


@pytest.fixture(scope="module")
def address(folder):
    with served(folder, environment()) as (_, address):
        assert address.startswith("http://127.0.0.1:"), address
        yield address


@pytest.fixture(scope="module")
def chromium():
    with browser() as chromium:
        if chromium is None:
            pytest.skip("there is no Chromium")
        yield chromium


@pytest.fixture
def page(chromium, address):
    """The page in a new browser, which has asked nobody but its own server in the end."""
    context = chromium.new_context(viewport={"width": 1100, "height": 700})
    asked = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.set_default_timeout(1000 * TIMEOUT)
    opened(page, address)
    yield page
    assert asked and [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    context.close()


def clean(strokes):
    """Returns the image of strokes that a thick pen leaves in the middle, without a browser."""
    picture = Image.new("L", [300, 300])
    pen = ImageDraw.Draw(picture)
    for stroke in strokes:
        points = [(50 + 2 * x, 50 + 2 * y) for x, y in stroke]
        pen.line(points, fill=255, width=25, joint="curve")
        for x, y in points:
            pen.ellipse([x - 12, y - 12, x + 12, y + 12], fill=255)
    return read_digit.as_in_mnist(np.asarray(picture, np.float32) / 255)


@pytest.mark.parametrize("kind", [("thick", "large", "middle"), ("thick", "small", "corner"),
                                  ("thin", "large", "corner")], ids=" ".join)
def test_a_digit_is_read_wherever_and_however_it_is_drawn(kind, page, model):
    expected = np.stack([*map(clean, DIGITS)]).reshape(10, 784)
    for number, strokes in enumerate(DIGITS):
        draw(page, strokes, *kind)
        image, digits = reading(page)
        likeness = np.corrcoef(image.ravel(), expected)[0, 1:]
        assert likeness.argmax() == number, likeness
        probabilities = np.asarray(model(image[np.newaxis]))[0]
        assert sorted(digits) == [*range(10)]
        assert (np.diff(probabilities[digits]) < 1e-5).all()  # the likeliest on top, up to rounding


def test_the_paper_is_cleared_by_one_click_and_then_shows_no_digit(page):
    for _ in range(2):
        page.get_by_text("The paper shows no digit: nothing is drawn.").wait_for()
        assert not page.locator(".confidence-set").count()
        draw(page, DIGITS[1])
        reading(page)
        page.get_by_role("button", name="Clear").click()


def test_a_spot_or_two_digits_are_told_in_a_sentence(page):
    draw(page, [[(50, 50), (50, 51)]])
    page.get_by_text("The paper shows no digit: what stands out in it has no strokes.").wait_for()
    draw(page, [[(0, 0), (0, 100)], [(100, 0), (100, 100)]])
    page.get_by_text("The paper shows more than one thing").wait_for()


def test_a_finger_draws_on_a_narrow_screen(chromium, address):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    page.set_default_timeout(1000 * TIMEOUT)
    paper = opened(page, address)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    assert paper.bounding_box()["width"] > 250
    box, touch = paper.bounding_box(), context.new_cdp_session(page)
    for part in range(11):
        point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] * (2 + part) / 15}
        touch.send("Input.dispatchTouchEvent", {
            "type": "touchMove" if part else "touchStart", "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    image, _ = reading(page)
    rows, columns = np.nonzero(image > 0.5)
    assert np.ptp(rows) > 15 and np.ptp(columns) < 5  # a straight line down, and nothing scrolled
    assert page.evaluate("window.scrollY") == 0
    context.close()


@posix
def test_two_run_side_by_side_each_in_the_browser_and_end_quietly(folder, address):
    browser = folder / "browser.py"
    browser.write_text("import sys; open('opened', 'w').write(sys.argv[1])", encoding="utf-8")
    with served(folder, environment(), browser.as_posix()) as (process, other):
        assert other.startswith("http://127.0.0.1:") and other != address
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0 and out == ""
    assert "Traceback" not in err and "Interrupt" not in err
    assert (folder / "opened").read_text() == other


@pytest.mark.parametrize("shape, sentence", [
    (None, "rnn_mnist.keras can't be loaded: train it by python rnn_mnist.py"),
    ((8, 8), r"makes \(None, 10\) of \(None, 8, 8\), not ten digits")])
def test_a_model_that_does_not_fit_is_told(shape, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if shape:
        keras.Sequential([keras.Input(shape), keras.layers.SimpleRNN(10)]).save("rnn_mnist.keras")
    with pytest.raises(SystemExit, match=sentence) as end:  # to standard error, with status 1
        draw_digit.main()
    assert "\n" not in end.value.code
