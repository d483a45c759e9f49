"""Opens a page to draw a digit on; meanwhile the trained network reads it row by row.

    pip install gradio scikit-image && python rnn_mnist.py && python docs/draw_digit.py

The page shows the image that the network reads, its answer after every timestep, and the final
probabilities of the ten digits. Nothing leaves this computer.
"""

import os
import pathlib
import sys
import time

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # otherwise Gradio looks for a newer version
import gradio
import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import read_digit

WHY = """The blue beside a row shows how probable each digit was once the network had read that row.

The network knows ten digits and nothing else: it also takes a heart or a T for a digit. And it
knows only how MNIST's writers wrote. Their 1 is mostly one slanted stroke, so the network may take
a 1 with a hook and a foot, or a neat straight 7, for another digit."""

PAGE = """<div class="about">
<h1>Draw a digit</h1>
<p>A recurrent network reads your drawing step by step, from top to bottom.</p>
</div>
<div class="paper">
<canvas width="300" height="300" role="img" aria-label="Paper to draw a digit on"></canvas>
<button type="button">Clear</button>
</div>
<div class="answer">
<p role="status"></p>
<div>${value}</div>
<p></p>
</div>"""
# Everything has its space from the start, so that the paper never moves under the pen, and the
# paper fits the window. In a wide window it is to the left of everything else.
CSS = """
display: grid; gap: 8px 24px; --side: min(100%, 400px, 36svh);
canvas, button { display: block; box-sizing: border-box; width: var(--side); }
canvas { aspect-ratio: 1; background: white; cursor: crosshair; touch-action: none;
         forced-color-adjust: none; border: 1px solid gray; border-radius: var(--radius-lg); }
button { margin-top: 8px; padding: 8px; border: 1px solid var(--border-color-primary);
         border-radius: var(--radius-lg); background: var(--button-secondary-background-fill);
         color: var(--button-secondary-text-color); }
h1, p { margin: 0 0 8px; }
.answer { max-width: 560px; }
.answer p { height: 3em; line-height: 1.5; overflow: auto; }
.answer [role=status] { height: 4.5em; font-weight: 600; }
@media (min-width: 640px) {
    & { --side: min(45vw, 400px, 100svh - 100px); grid-template: auto 1fr / auto 1fr; }
    .paper { grid-row: 1 / 3; }
    .answer [role=status] { height: 3em; }
}
"""
# The page keeps space for a scrollbar, which would otherwise move the paper when it appears.
PAGE_CSS = """
html { scrollbar-gutter: stable; }
@media print { * { color: black !important; background: white !important; } }
"""
DRAW = """
const paper = element.querySelector("canvas");
const pen = paper.getContext("2d");
const answer = element.querySelector(".answer");
const [sentence, figure, changes] = answer.children;
const gone = ["The program has ended: start docs/draw_digit.py again.", figure.innerHTML, ""];
Object.assign(pen, {lineWidth: 25, lineCap: "round", lineJoin: "round"});
let strokes = [];  // lists of points, on a paper of 300 by 300
let hand;  // the pointer that draws, if any
let drawn = 0, asking = false;

async function show() {
    drawn += 1;
    if (asking) return;  // the loop below then asks about the latest drawing
    asking = true;
    answer.setAttribute("aria-busy", true);
    for (let asked; asked !== drawn;) {
        asked = drawn;
        const said = await server.read(strokes) ?? gone;
        // Screen readers read it aloud whenever it is set.
        if (sentence.textContent !== said[0]) sentence.textContent = said[0];
        figure.innerHTML = said[1];
        changes.textContent = said[2];
    }
    answer.setAttribute("aria-busy", false);
    asking = false;
}

function point(event) {
    const scale = paper.width / paper.clientWidth;
    return [event.offsetX * scale, event.offsetY * scale];
}

paper.addEventListener("pointerdown", event => {
    // Only one draws, otherwise lines jump between two. A pen takes over from a palm on the paper.
    if (event.button || hand !== undefined && event.pointerType !== "pen") return;
    hand = event.pointerId;
    paper.setPointerCapture(hand);
    strokes.push([point(event)]);
    pen.beginPath();
    pen.arc(...point(event), pen.lineWidth / 2, 0, 2 * Math.PI);  // a line of length 0 is invisible
    pen.fill();
    show();
});
paper.addEventListener("pointermove", event => {
    if (event.pointerId !== hand) return;
    const stroke = strokes.at(-1);
    pen.beginPath();
    pen.moveTo(...stroke.at(-1));
    stroke.push(point(event));
    pen.lineTo(...stroke.at(-1));
    pen.stroke();
    show();
});
paper.addEventListener("lostpointercapture", event => {
    if (event.pointerId === hand) hand = undefined;
});
for (const name of ["mousedown", "dragstart"])  // otherwise the browser drags a selection
    paper.addEventListener(name, event => event.preventDefault());
element.querySelector("button").addEventListener("click", () => {
    pen.clearRect(0, 0, paper.width, paper.height);
    strokes = [];
    hand = undefined;
    show();
});
show();
"""


def drawn(strokes):
    """Returns the digit that strokes form, as in MNIST: float32 [28, 28], 0 to 1.

    Strokes are lists of points (x, y) on a paper of 300 by 300. They are redrawn 200 high or wide
    with a pen of 2.6 of MNIST's pixels, its usual stroke width: on a small digit the page's own pen
    is too thick.
    """
    if not strokes:
        raise read_digit.Unreadable("shows no digit: nothing is drawn")
    points = np.concatenate(strokes)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = 200 / max(*(high - low), 75)  # a drawing below a quarter of the paper stays small
    picture = Image.new("L", [300, 300])
    pen = ImageDraw.Draw(picture)
    for stroke in strokes:
        stroke = 150 + scale * (np.array(stroke) - (low + high) / 2)
        pen.line(stroke.ravel().tolist(), fill=255, width=30)
        for x, y in stroke:
            pen.ellipse([x - 15, y - 15, x + 15, y + 15], fill=255)
    return read_digit.as_in_mnist(read_digit.digit_of(np.asarray(picture, np.float32) / 255))


def figure(image, every_timestep, probabilities):
    """Returns an SVG of the image [28, 28] and, beside it, every timestep's answer [timesteps, 10].

    Below are the final probabilities [10], which may be empty.
    """
    def cells(values, left, width, colour):
        height = 28 / len(values)
        return "".join(f'<rect x="{left + width * column}" y="{height * row:g}" width="{width}" '
                       f'height="{height:g}" fill="{colour}" '
                       f'fill-opacity="{values[row, column]:.2f}"/>'
                       for row, column in np.argwhere(values > 0.005))

    rows = "".join(f'<text x="2.6" y="{row - 0.1}" text-anchor="end">{row}</text>'
                   for row in (1, 7, 14, 21, 28))
    digits = "".join(f'<text x="{34 + 2 * digit}" y="-0.6">{digit}</text>'
                     f'<text x="{5.5 + 5 * digit}" y="31.5">{digit}</text>' for digit in range(10))
    bars = "".join(f'<rect x="{3.4 + 5 * digit}" y="{36.2 - 4 * each:.2f}" width="4.2" '
                   f'height="{4 * each + 0.2:.2f}" fill="#2563eb"/>'
                   f'<text x="{5.5 + 5 * digit}" y="38.2">{each:.0%}</text>'
                   for digit, each in enumerate(probabilities))
    said = ", ".join(f"{each:.0%} for {digit}" for digit, each in enumerate(probabilities))
    return f"""<svg viewBox="0 -2.5 53.5 41.5" font-size="1.6" fill="currentColor" role="img"
aria-label="The image that the network reads, and its probabilities: {said or "none yet"}"
shape-rendering="crispEdges" text-anchor="middle">{rows}{digits}{bars}
<rect x="3" width="28" height="28" fill="black"/>{cells(image, 3, 1, "white")}
<rect x="33" width="20" height="28" fill="none" stroke="currentColor" stroke-width="0.1"/>
{cells(every_timestep, 33, 2, "#2563eb")}</svg>"""


NO_ANSWERS = np.zeros([1, 10])
NOTHING = figure(np.zeros([28, 28]), NO_ANSWERS, [])


def reader(model):
    """Returns the function with which the page has strokes read by the model."""
    try:
        any_length, reason = read_digit.for_any_length(model), ""
    except read_digit.Unreadable as error:
        any_length, reason = None, str(error)

    def read(strokes):
        """Returns the answer, the figure, and a sentence on the answers along the way."""
        try:
            image = drawn(strokes)
        except read_digit.Unreadable as error:
            return f"The paper {error}.", NOTHING, reason
        x = read_digit.sequence_of(image)
        probabilities = model.predict_on_batch(x)[0]
        answer = f"Answer: {probabilities.argmax()}, with probability {probabilities.max():.2f}."
        if any_length is None:
            return answer, figure(image, NO_ANSWERS, probabilities), reason
        every_timestep = read_digit.after_every_timestep(any_length, x)[0]
        inked = (x[0] != read_digit.sequence_of(0 * image)[0]).any(axis=1)
        guesses = every_timestep.argmax(axis=1)[inked.argmax():]  # those before saw no ink
        changes = guesses[np.append(True, guesses[1:] != guesses[:-1])]
        return answer, figure(image, every_timestep, probabilities), (
            "The answer was the same from the first inked row on." if len(changes) == 1 else
            f"From the first inked row on, the answers were {', '.join(map(str, changes))}.")

    return read


def page(model):
    """Returns the Gradio page on which the model reads what is drawn."""
    read = reader(model)
    read([[(150, 50), (150, 250)]])  # the first call is slow
    with gradio.Blocks(title="Draw a digit", analytics_enabled=False) as blocks:
        gradio.HTML(NOTHING, html_template=PAGE, css_template=CSS, js_on_load=DRAW,
                    server_functions=[read])
        gradio.Markdown(WHY)
    return blocks


def main():
    try:
        blocks = page(read_digit.load_model())
    except read_digit.Unreadable as error:
        sys.exit(str(error))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # Gradio requests its own page at start
    try:
        _, url, _ = blocks.launch(inbrowser=True, share=False, server_name="127.0.0.1", quiet=True,
                                  prevent_thread_lock=True, ssr_mode=False, footer_links=["gradio"],
                                  run_history=False, css=PAGE_CSS)
    except OSError:
        sys.exit("Cannot open the page, since all its ports (by default 7860 to 7959) are in use: "
                 "end a program that uses one, or set GRADIO_SERVER_PORT to another number.")
    try:
        print(f"Draw at {url} in your browser. Press Ctrl-C to end the program.", flush=True)
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
