"""docs/draw_digit.py reads digits that are drawn on its page, in a real browser.

The network is trained on the sample's digits, which are not MNIST's. Most tests therefore compare
what the page shows with the network's answer to the same drawing, or to a clean one.
"""

import io
import re
import runpy
import signal
import socket
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT, TIMEOUT, environment, posix, usual_signals
from test_read_digit import COLUMNS, network, read_digit

import rnn_mnist

Image, ImageDraw = map(pytest.importorskip, ("PIL.Image", "PIL.ImageDraw"))
http_server = pytest.importorskip("gradio.http_server")
pytest.importorskip("playwright")
import draw_digit  # noqa: E402
from drawing import DIGITS, KINDS, browser, draw, opened, reading, served  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(trained_file):
    return trained_file.parent


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
def new_page(chromium, address):
    """Opens the page in a new browser; fails if it has sent a request to any other server."""
    contexts, asked = [], []

    def new_page(width, height, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.set_default_timeout(1000 * TIMEOUT)
        opened(page, address)
        return page

    yield new_page
    assert asked and [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    for context in contexts:
        context.close()


@pytest.fixture
def page(new_page):
    return new_page(1100, 700)


def clean(strokes):
    """Returns the image of strokes drawn by a thick pen without a browser: float32 [28, 28]."""
    picture = Image.new("L", [300, 300])
    pen = ImageDraw.Draw(picture)
    for stroke in strokes:
        points = [(50 + 2 * x, 50 + 2 * y) for x, y in stroke]
        pen.line(points, fill=255, width=25, joint="curve")
        for x, y in points:
            pen.ellipse([x - 12, y - 12, x + 12, y + 12], fill=255)
    return read_digit.as_in_mnist(np.asarray(picture, np.float32) / 255)


def ink(page, left=0, top=0, right=300, bottom=300):
    """Returns the number of inked pixels in a part of the paper, which measures 300 by 300."""
    return page.evaluate("""([left, top, right, bottom]) => document.querySelector("canvas")
        .getContext("2d").getImageData(left, top, right - left, bottom - top).data
        .filter((value, n) => n % 4 == 3 && value > 128).length""", [left, top, right, bottom])


def box(page):
    return page.locator("canvas").bounding_box()


def assert_read(number, image):
    """Fails if an image is more like the clean drawing of another digit."""
    expected = np.stack([*map(clean, DIGITS)]).reshape(10, 784)
    likeness = np.corrcoef(image.ravel(), expected)[0, 1:]
    assert likeness.argmax() == number, likeness


def test_each_digit_is_read_as_it_is_drawn(page, trained_file):
    model = keras.models.load_model(trained_file)
    for number, strokes in enumerate(DIGITS):
        draw(page, strokes, *KINDS[number % len(KINDS)])
        sentence, image, shown = reading(page)
        assert_read(number, image)
        probabilities = np.asarray(model(image[np.newaxis]))[0]
        np.testing.assert_allclose(shown, probabilities, atol=0.05)  # the image is rounded
        assert f" {shown.argmax()}, with probability " in sentence
        changes = page.locator(".answer p").last.inner_text()  # a sentence, perhaps without digits
        assert changes and re.findall(r"\d", changes)[-1:] in ([], [str(shown.argmax())])


@pytest.mark.parametrize("side", [300, 200, 105, 75])
def test_a_digit_of_any_size_is_read(side):
    for number, strokes in enumerate(DIGITS):
        assert_read(number, draw_digit.drawn(
            [[(x * side / 100, 300 + (y - 100) * side / 100) for x, y in stroke]
             for stroke in strokes]))


def test_the_paper_is_cleared_by_one_click_and_then_shows_no_digit(page):
    for _ in range(2):
        sentence, image, probabilities = reading(page)
        assert not re.search(r"\d", sentence) and not image.any() and not probabilities.size
        draw(page, DIGITS[1])
        assert reading(page)[1].any()
        page.get_by_role("button", name="Clear").click()


def test_a_spot_and_two_digits_are_refused(page):
    reasons = {reading(page)[0]}  # that nothing is drawn
    for strokes in ([[(50, 50)]], [[(0, 0), (0, 100)], [(100, 0), (100, 100)]]):  # first a click
        draw(page, strokes)
        assert ink(page) > 400
        sentence, image, probabilities = reading(page)
        reasons.add(sentence)
        assert not re.search(r"\d", sentence) and not image.any() and not probabilities.size
    assert len(reasons) == 3


@pytest.mark.parametrize("size", [(1200, 760), (800, 507), (844, 390), (390, 844), (360, 640)],
                         ids=str)
def test_the_paper_fits_the_window_and_never_moves(size, new_page):
    page = new_page(*size)
    width, height = size
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    before, button = box(page), page.get_by_role("button", name="Clear").bounding_box()
    assert before["width"] > 200 and button["y"] + button["height"] < height
    draw(page, DIGITS[8])
    reading(page)
    assert box(page) == before
    rows = page.locator("svg rect[fill=black]").bounding_box()
    assert rows["y"] + rows["height"] < height + 10  # they are visible beside the drawing
    page.evaluate("document.body.style.minHeight = '3000px'")  # makes a scrollbar appear
    assert box(page) == before
    page.evaluate("scrollTo(0, 10000)")
    before = box(page)
    # A click by Playwright's mouse scrolls to the button.
    page.evaluate("document.querySelector('canvas + button').click()")
    reading(page)
    assert box(page) == before


def test_what_is_selected_is_not_dragged(page):
    zigzag = [[(10 * n, 90 * (n % 2)) for n in range(10)]]
    draw(page, zigzag)
    expected = ink(page)
    for select in ("Control+a", None):
        page.get_by_role("button", name="Clear").click()
        if select:
            page.keyboard.press(select)
        else:
            paper, heading = box(page), page.get_by_role("heading").bounding_box()
            page.mouse.move(heading["x"] + 1, heading["y"] + 5)
            page.mouse.down()
            page.mouse.move(paper["x"] + 50, paper["y"] + 250, steps=5)
            page.mouse.up()
        assert page.evaluate("getSelection().toString().length") > 10
        draw(page, zigzag)
        assert ink(page) == expected


def test_a_finger_draws_and_a_palm_leaves_the_pen_alone(new_page):
    page = new_page(390, 844, has_touch=True)
    paper, send = box(page), page.context.new_cdp_session(page).send

    def touch(kind, *at):
        send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": [
            {"x": paper["x"] + paper["width"] * x, "y": paper["y"] + paper["height"] * y}
            for x, y in at]})

    def pen(kind, x, y):
        send("Input.dispatchMouseEvent", {
            "type": f"mouse{kind}", "x": paper["x"] + paper["width"] * x,
            "y": paper["y"] + paper["height"] * y, "button": "left", "buttons": 1,
            "clickCount": 1, "pointerType": "pen"})

    for part in range(2, 13):
        touch("Move" if part > 2 else "Start", (0.5, part / 15))
    touch("End")
    _, image, _ = reading(page)
    rows, columns = np.nonzero(image > 0.5)
    assert np.ptp(rows) > 15 and np.ptp(columns) < 5  # a straight line down, and nothing scrolled
    assert page.evaluate("window.scrollY") == 0

    page.get_by_role("button", name="Clear").click()
    touch("Start", (0.1, 0.9))
    pen("Pressed", 0.9, 0.1)
    for part in range(5):
        touch("Move", (0.1 + part / 50, 0.9))
        pen("Moved", 0.9 - part / 50, 0.1)
    pen("Released", 0.82, 0.1)
    touch("End")
    assert ink(page, 230, 0) and not ink(page, 100, 100, 200, 200)  # no line from one to the other


def test_it_can_be_seen_in_forced_colours_and_printed(new_page):
    page = new_page(1000, 600, forced_colors="active", color_scheme="dark")
    draw(page, DIGITS[8])
    picture = Image.open(io.BytesIO(page.locator("canvas").screenshot())).convert("L")
    dark, light = np.percentile(picture, [5, 60])
    assert dark < 50 and light > 200
    page = new_page(1000, 600, color_scheme="dark")
    page.emulate_media(media="print")
    page.wait_for_function("""() => {  // the page may still be fading from screen to print
        const texts = [...document.querySelectorAll("h1, p, text")];
        return texts.length > 20
            && texts.every(each => getComputedStyle(each).color === "rgb(0, 0, 0)");
    }""")


def test_a_screen_reader_has_names_for_all_and_tab_reaches_only_the_controls(page):
    page.get_by_role("img", name="Paper to draw a digit on").wait_for()
    draw(page, DIGITS[8])
    _, _, probabilities = reading(page)
    page.get_by_role("img", name=f"{probabilities[8]:.0%} for 8").wait_for()
    stops = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(3):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.tagName"))
    assert stops == ["BUTTON", "A", "BODY"]


@posix
def test_two_run_side_by_side_open_the_browser_and_end_quietly(folder, address, chromium):
    browser = folder / "browser.py"
    browser.write_text("import sys; open('opened', 'w').write(sys.argv[1])", encoding="utf-8")
    with served(folder, environment(), browser.as_posix(),
                preexec_fn=usual_signals) as (process, other):
        assert other.startswith("http://127.0.0.1:") and other != address
        page = chromium.new_page()
        opened(page, other)
        draw(page, DIGITS[1])
        assert reading(page)[1].any()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
        draw(page, DIGITS[0])  # when the program has ended
        sentence, image, probabilities = reading(page)
        assert "docs/draw_digit.py" in sentence
        assert not image.any() and not probabilities.size
        page.close()
    assert process.returncode == 0 and out == ""
    assert "Traceback" not in err and "Interrupt" not in err
    assert (folder / "opened").read_text() == other


def test_an_error_message_names_the_ports_that_are_all_in_use(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("NO_PROXY", "no_proxy"):  # which the program sets
        monkeypatch.setenv(name, "")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # as by $GRADIO_SERVER_PORT and $GRADIO_NUM_PORTS, which Gradio reads when imported
        monkeypatch.setattr(http_server, "INITIAL_PORT_VALUE", taken.getsockname()[1])
        monkeypatch.setattr(http_server, "TRY_NUM_PORTS", 1)
        with pytest.raises(SystemExit, match="7860 to 7959.* GRADIO_SERVER_PORT"):
            draw_digit.main()


def test_the_figure_numbers_its_first_and_last_row_and_others_beside_them():
    numbers = re.findall(r'y="([\d.]+)" text-anchor="end">(\d+)', draw_digit.NOTHING)
    assert [numbers[0][1], numbers[-1][1]] == ["1", "28"]
    assert all(int(row) - 1 < float(y) < int(row) for y, row in numbers)


def test_each_bar_stands_between_its_digit_and_its_percentage():
    probabilities = np.arange(10) / 45
    svg = draw_digit.figure(np.zeros([28, 28]), draw_digit.NO_ANSWERS, probabilities)
    bars = re.findall(r'<rect x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)" fill="#2', svg)
    left, top, width, height = np.float64(bars).T
    np.testing.assert_allclose(top + height, (top + height)[0], atol=0.02)  # two decimals each
    np.testing.assert_allclose(height - height[0], 4 * probabilities, atol=0.02)
    assert 0 < height[0] < 1  # 0 is seen, too
    texts = re.findall(r'<text x="(\S+)" y="(\S+)">(\d+%?)</text>', svg)[-30:]
    for n, (digit, percentage) in enumerate(zip(texts[1:20:2], texts[20:], strict=True)):
        assert (digit[2], percentage[2]) == (str(n), f"{n / 45:.0%}")
        assert float(digit[0]) == float(percentage[0]) == pytest.approx(left[n] + width[n] / 2)
        assert float(digit[1]) < top[n] and top[n] + height[n] < float(percentage[1])


@pytest.mark.parametrize("steps, height, first", [(14, "2", 2), (28, "1", 4), (56, "0.5", 8)])
def test_a_timestep_is_as_high_as_its_rows_and_counts_from_the_first_ink_on(
        steps, height, first, monkeypatch):
    monkeypatch.setattr(rnn_mnist, "N_STEPS", steps)
    monkeypatch.setattr(rnn_mnist, "N_INPUT", 784 // steps)
    # The answer after a timestep is the last digit of its number, counted from 0.
    answers = np.eye(10)[np.arange(steps) % 10]
    monkeypatch.setattr(read_digit, "after_every_timestep", lambda model, x: answers[np.newaxis])
    model = keras.Sequential([keras.Input([steps, 784 // steps]), keras.layers.SimpleRNN(10)])
    _, svg, changes = draw_digit.reader(model)([[(150, 50), (150, 250)]])  # inked from row 4 on
    cells = re.findall(r'y="(\S+)" width="2" height="(\S+)"', svg)
    assert cells == [(f"{n * 28 / steps:g}", height) for n in range(steps)]
    assert re.findall(r"\d", changes) == [str(n % 10) for n in range(first, steps)]


def test_a_network_that_cannot_answer_after_every_timestep_still_answers():
    sentence, svg, reason = draw_digit.reader(network(*COLUMNS()))([[(150, 50), (150, 250)]])
    assert ", with probability " in sentence and "for 9" in svg
    assert re.search(r"\b28\b", reason)


@pytest.mark.parametrize("name", ["read_digit", "draw_digit"])
def test_a_program_finds_the_script_by_a_link_and_with_safe_path(name, tmp_path, monkeypatch):
    link = tmp_path / f"{name}.py"
    try:
        link.symlink_to(ROOT / "docs" / link.name)
    except OSError:
        pytest.skip("this user may not make links")
    # as with PYTHONSAFEPATH=1: Python puts no folder of the program's on the path
    ours = [str(ROOT), str(ROOT / "docs"), ""]
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ours])
    for module in ("rnn_mnist", "read_digit"):
        monkeypatch.delitem(sys.modules, module)
    runpy.run_path(str(link))


@pytest.mark.parametrize("content, facts", [
    (None, []),
    (0, []),
    (5000, []),  # so many bytes are left of it
    ([8, 8], ["(None, 8, 8)", "(None, 28, 28)", "(None, 10)"]),
    ([28, 28], ["probabilities", "softmax", "from_logits=True"])])
def test_a_model_that_does_not_fit_is_refused(content, facts, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, int):
        whole = (folder / "rnn_mnist.keras").read_bytes()
        (tmp_path / "rnn_mnist.keras").write_bytes(whole[:content])
    elif content:  # a network of this input shape that returns logits
        keras.Sequential([keras.Input(content), keras.layers.SimpleRNN(10)]).save("rnn_mnist.keras")
    with pytest.raises(SystemExit) as end:  # to standard error, with status 1
        draw_digit.main()
    for fact in ["rnn_mnist.keras", *facts]:
        assert fact in end.value.code
    assert "\n" not in end.value.code
    assert ("File not found" in end.value.code) == (content is None)  # as Keras says of both
