"""Opens a page to draw a digit on; while one draws, the trained network reads it row by row.

    pip install gradio pillow && python rnn_mnist.py && python docs/draw_digit.py

The page shows the probabilities of the ten digits, the image that the network gets, and what it
would say after each of the image's rows. Nothing leaves this computer.
"""

import base64
import io
import os
import sys
import time

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio would look for its newest version, too
import gradio
import numpy as np
from PIL import Image, ImageOps

import read_digit

ABOUT = """# Draw a digit
A recurrent network sees your drawing as 28 rows and reads one after the other."""
WHY = """The network knows only how MNIST's writers wrote: their 1 is mostly one slanted stroke, so a
neat straight 7, or a 1 with a hook, may look like none of theirs and be taken for another digit."""

# The pen is a twelfth of the paper, as thick as MNIST's where a digit takes most of it.
PAPER = """<canvas width="300" height="300" aria-label="Paper to draw a digit on"></canvas>
<button type="button">Clear</button>"""
PAPER_CSS = """
canvas { width: 100%; max-width: 400px; background: white; cursor: crosshair; touch-action: none;
         border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg); }
button { width: 100%; max-width: 400px; margin-top: 8px; padding: 8px;
         border-radius: var(--radius-lg); background: var(--button-secondary-background-fill);
         color: var(--button-secondary-text-color); }
"""
DRAW = """
const paper = element.querySelector("canvas");
const pen = paper.getContext("2d");
Object.assign(pen, {lineWidth: 25, lineCap: "round", lineJoin: "round"});
const show = () => {
    props.value = paper.toDataURL();  // a PNG
    trigger("input");
};
let at;

function draw(event) {
    if (at === undefined || !event.isPrimary) return;
    pen.beginPath();
    pen.moveTo(...at);
    const scale = paper.width / paper.clientWidth;
    at = [event.offsetX * scale, event.offsetY * scale];
    pen.lineTo(...at);
    pen.stroke();
    show();
}

paper.addEventListener("pointerdown", event => {
    if (!event.isPrimary || event.button) return;
    paper.setPointerCapture(event.pointerId);
    const scale = paper.width / paper.clientWidth;
    at = [event.offsetX * scale, event.offsetY * scale];
    draw(event);
});
paper.addEventListener("pointermove", draw);
paper.addEventListener("lostpointercapture", () => at = undefined);
element.querySelector("button").addEventListener("click", () => {
    pen.clearRect(0, 0, paper.width, paper.height);
    show();
});
"""


def drawn(url):
    """Returns the digit on the paper as MNIST has it, float32 [28, 28], from a PNG's data URL."""
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    # A margin, since a stroke at the paper's edge is a stroke all the same.
    ink = ImageOps.expand(picture.getchannel("A"), border=30)
    if not ink.getbbox():
        raise read_digit.Unreadable("shows no digit: nothing is drawn")
    return read_digit.as_in_mnist(read_digit.digit_of(np.asarray(ink, np.float32) / 255))


def figure(image, probabilities):
    """Returns an SVG of the image [28, 28], and aligned with it probabilities [28, 10]."""
    def cells(values, left, width, colour):
        return "".join(f'<rect x="{left + width * column}" y="{row}" width="{width}" height="1" '
                       f'fill="{colour}" fill-opacity="{values[row, column]:.2f}"/>'
                       for row, column in np.argwhere(values > 0.005))

    rows = "".join(f'<text x="2.6" y="{row - 0.1}" text-anchor="end">{row}</text>'
                   for row in (1, 7, 14, 21, 28))
    digits = "".join(f'<text x="{34 + 2 * digit}" y="-0.6" text-anchor="middle">{digit}</text>'
                     for digit in range(10))
    return f"""<svg viewBox="0 -2.5 53.5 31" font-size="1.6" fill="currentColor"
shape-rendering="crispEdges">{rows}{digits}
<rect x="3" width="28" height="28" fill="black"/>{cells(image, 3, 1, "white")}
<rect x="33" width="20" height="28" fill="none" stroke="currentColor" stroke-width="0.1"/>
{cells(probabilities, 33, 2, "#2563eb")}</svg>"""


def page(model):
    """Returns the Gradio page on which the network `model` reads what is drawn."""
    try:
        any_rows, reason = read_digit.for_any_rows(model), ""
    except read_digit.Unreadable as error:
        any_rows, reason = None, error

    def read(picture):
        try:
            image = drawn(picture)
        except read_digit.Unreadable as error:
            return None, f"The paper {error}."
        return look(image)

    def look(image):
        probabilities = model.predict_on_batch(image[np.newaxis])[0]
        likely = {str(digit): float(each) for digit, each in enumerate(probabilities)}
        if any_rows is None:
            svg = figure(image, np.zeros([28, 10]))
            return likely, f"<p>The image that it gets. {reason}</p>{svg}"
        every_row = read_digit.after_every_row(any_rows, image[np.newaxis])[0]
        guesses = every_row.argmax(axis=1)[image.any(axis=1).argmax():]  # those above saw nothing
        changes = guesses[np.append(True, guesses[1:] != guesses[:-1])]
        return likely, (f"<p>The image that it gets, and what it would say after each row: "
                        f"{', '.join(map(str, changes))}</p>{figure(image, every_row)}")

    look(np.zeros([28, 28], np.float32))  # the first time is slow
    with gradio.Blocks(title="Draw a digit", analytics_enabled=False) as blocks:
        gradio.Markdown(ABOUT)
        with gradio.Row():  # on a narrow screen its columns stand one above the other
            with gradio.Column(scale=3, min_width=280):
                paper = gradio.HTML(html_template=PAPER, css_template=PAPER_CSS, js_on_load=DRAW)
            with gradio.Column(scale=2, min_width=200):
                label = gradio.Label(label="Probabilities")
            with gradio.Column(scale=4, min_width=300):
                rows = gradio.HTML("The paper shows no digit: nothing is drawn.")
        gradio.Markdown(WHY)
        paper.input(read, paper, [label, rows], show_progress="hidden", trigger_mode="always_last")
    return blocks


def main():
    try:
        blocks = page(read_digit.load_model())
    except read_digit.Unreadable as error:
        sys.exit(str(error))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # it asks itself for its page, no proxy
    _, url, _ = blocks.launch(inbrowser=True, share=False, server_name="127.0.0.1", quiet=True,
                              prevent_thread_lock=True, ssr_mode=False, footer_links=["gradio"],
                              run_history=False)
    try:
        print(f"Draw at {url} in your browser. Ctrl-C ends it.", flush=True)
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
