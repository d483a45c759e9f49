"""docs/read_digit.py finds the digit in any picture and reads it as the script reads its data.

The tests also cover what docs/draw_digit.py and docs/what_it_sees.py use of it: answers after every
timestep.
"""

import shutil
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from conftest import ROOT, TIMEOUT, environment, normalized, script

import rnn_mnist

Image, ImageDraw = map(pytest.importorskip, ("PIL.Image", "PIL.ImageDraw"))
pytest.importorskip("skimage")
import read_digit  # noqa: E402

DIGITS = 10


def drawings():
    """Returns UCI digits as the sample holds them: uint8 [n, 28, 28], black with white strokes."""
    _, (images, labels) = rnn_mnist.read_uci_digits()
    return images[:DIGITS, :, :, 0], labels[:DIGITS]


def enlarged(drawing, times):
    rows, columns = np.nonzero(drawing)
    box = drawing[rows.min():rows.max() + 1, columns.min():columns.max() + 1]
    size = (int(box.shape[1] * times), int(box.shape[0] * times))
    return np.asarray(Image.fromarray(box).resize(size, Image.Resampling.BICUBIC), np.float64)


def put(digit, height, width, generator):
    """Returns a black picture, [height, width], with the digit somewhere in it."""
    picture = np.zeros([height, width])
    top, left = (generator.integers(0, all - part + 1) for all, part in
                 zip(picture.shape, digit.shape, strict=True))
    picture[top:top + digit.shape[0], left:left + digit.shape[1]] = digit
    return picture


def grey(picture):
    return Image.fromarray(np.uint8(np.clip(picture, 0, 255)))


def light_on_dark(drawing, generator):
    return grey(put(enlarged(drawing, 10), 400, 300, generator))


def filling(drawing, generator):
    digit = enlarged(drawing, 280 / 20)
    return grey(255 - put(digit, *(max(digit.shape),) * 2, generator))


def photo(drawing, generator):
    ink = put(enlarged(drawing, 9), 300, 400, generator) / 255
    light = 130 + 80 * np.linspace(0, 1, 400) - 30 * np.linspace(-1, 1, 300)[:, np.newaxis] ** 2
    return grey(light * (1 - 0.7 * ink) + generator.normal(0, 6, ink.shape))


def turned(drawing, generator):
    picture = photo(drawing, generator).transpose(Image.Transpose.ROTATE_90)
    picture.getexif()[0x0112] = 6  # to be turned back before it is shown
    return picture


def in_floating_point(drawing, generator):
    return Image.fromarray(np.asarray(photo(drawing, generator), np.float32) / 255)


def inked(drawing, light, generator, margin=20):
    """Returns part of a photo, light [height, width], with the digit written somewhere on it."""
    ink = put(enlarged(drawing, 8), *np.subtract(light.shape, 2 * margin), generator) / 255
    return light * (1 - 0.75 * np.pad(ink, margin))


def paper(height, width):
    return 205 - 30 * np.linspace(0, 1, width) + 15 * np.linspace(-1, 1, height)[:, np.newaxis]


def noisy(light, generator):
    return grey(light + generator.normal(0, 4, light.shape))


def lined(drawing, generator):
    light = paper(400, 400)
    light[20::40] -= 45
    light[21::40] -= 45
    return noisy(inked(drawing, light, generator), generator)


def in_a_box(drawing, generator):
    light = paper(420, 420)
    light[90:330, 90:330] = inked(drawing, light[90:330, 90:330], generator, margin=15)
    picture = grey(light)
    ImageDraw.Draw(picture).rectangle([90, 90, 330, 330], outline=50, width=5)
    return noisy(np.float64(picture), generator)


def in_the_shadow_of_a_hand(drawing, generator):
    down, right = np.mgrid[:480, :640]
    distance = np.hypot(down - 480, right - generator.uniform(0, 640))
    shadow = 1 - 0.45 / (1 + np.exp((distance - 280) / 18))
    return noisy(shadow * inked(drawing, paper(480, 640), generator), generator)


KINDS = [(light_on_dark, "bmp"), (filling, "gif"), (turned, "jpg"), (in_floating_point, "tiff"),
         (lined, "jpg"), (in_a_box, "jpg"), (in_the_shadow_of_a_hand, "jpg")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Ignored")
@pytest.mark.parametrize("draw, ending", KINDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_picture_is_read_as_the_clean_drawing_of_its_digit(draw, ending, tmp_path):
    drawn, _ = drawings()
    generator = np.random.default_rng(0)
    read = []
    for drawing in drawn:
        picture = draw(drawing, generator)
        picture.save(tmp_path / f"digit.{ending}", exif=picture.getexif())
        read.append(read_digit.read_picture(tmp_path / f"digit.{ending}"))
    likeness = np.corrcoef(np.reshape(read, [DIGITS, 784]),
                           normalized(drawn).reshape(DIGITS, 784))[:DIGITS, DIGITS:]
    # No other drawing is more like it, although three digits are among them twice.
    found = (likeness.argmax(axis=1) == np.arange(DIGITS)) & (likeness.diagonal() > 0.75)
    assert np.count_nonzero(found) >= DIGITS - 1


def test_the_digit_is_where_mnist_has_it():
    for image in drawings()[0]:
        ink = np.kron(image, np.ones([9, 9], np.float32)) / 255
        digit = read_digit.as_in_mnist(np.pad(ink, [(0, 100), (50, 0)]))
        rows, columns = np.nonzero(digit > 0.1)
        assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20
        centre = [np.average(np.arange(28) + 0.5, weights=digit.sum(axis=axis)) for axis in (1, 0)]
        assert np.abs(np.subtract(centre, 14)).max() < 0.51  # it is moved by whole pixels


def test_a_fine_pen_is_made_a_thick_one():
    lines = {}
    for pen in (2, 6, 30):  # 30 are two of MNIST's pixels
        picture = Image.new("L", [400, 400])
        ImageDraw.Draw(picture).line([(100, 50), (300, 50), (150, 350)], fill=255, width=pen)
        ink = read_digit.with_thick_strokes(np.asarray(picture, np.float32) / 255)
        lines[pen] = read_digit.as_in_mnist(ink)
    for pen in (2, 6):
        assert 0.7 < lines[pen].sum() / lines[30].sum() < 1.4


@pytest.mark.parametrize("picture", [
    np.full([200, 300], 255.0), np.zeros([50, 50]), np.zeros([50, 50, 4]),
    np.random.default_rng(0).normal(128, 20, [300, 300]),
    np.tile(np.linspace(100, 200, 300), [200, 1])],
    ids=["white", "black", "transparent", "noise", "shade"])
def test_a_picture_without_a_digit_is_refused(picture, tmp_path):
    grey(picture).save(tmp_path / "digit.png")
    with pytest.raises(read_digit.Unreadable, match="digit.png") as refused:
        read_digit.read_picture(tmp_path / "digit.png")
    assert type(refused.value.__cause__) is read_digit.Unreadable  # it is a picture


@pytest.mark.parametrize("content", [None, b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_a_file_that_is_no_picture_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "digit.png").write_bytes(content)
    with pytest.raises(read_digit.Unreadable, match="digit.png") as refused:
        read_digit.read_picture(tmp_path / "digit.png")
    assert isinstance(refused.value.__cause__, OSError)  # Pillow's, or that there is no file


@pytest.mark.parametrize("width, height", [(1, 1), (1, 500), (3, 4000), (20000, 1), (2, 600)])
def test_a_picture_too_narrow_for_a_digit_is_refused(width, height):
    noise = np.random.default_rng(0).integers(0, 256, [height, width])
    with pytest.raises(read_digit.Unreadable):
        read_digit.find_digit(grey(noise))


def strokes(*lines, on=None, width=20, ink=40):
    """Returns a sheet of paper, or the picture `on`, with lines drawn by a pen."""
    picture = on or grey(paper(400, 400))
    for line in lines:
        ImageDraw.Draw(picture).line(line, fill=ink, width=width)
    return picture


LINE = [(200, 60), (200, 340)]  # a digit, to the finder


@pytest.mark.parametrize("pixels", [
    lambda grey: np.int32(grey) * 1000, lambda grey: np.float32(grey) / 255], ids=["I", "F"])
def test_numbers_of_any_range_are_brightness_and_missing_ones_are_no_digit(pixels):
    values = pixels(strokes(LINE))
    if values.dtype == np.float32:
        values[0, 0], values[5, 5] = np.inf, np.nan
    np.testing.assert_allclose(read_digit.find_digit(Image.fromarray(values)),
                               read_digit.find_digit(strokes(LINE)), atol=0.1)


@pytest.mark.parametrize("side, brightness, background", [
    (100, 0, 255), (100, 255, 0),  # only the digit is painted: it stands out
    (280, 180, 180)])  # paper goes on around itself
def test_what_is_transparent_is_background(side, brightness, background):
    picture = Image.new("RGBA", (300, 300), (0, 0, 0, 0))
    picture.paste((brightness,) * 3 + (255,), (10, 10, 10 + side, 10 + side))
    assert read_digit.brightness_of(picture)[0, 0] == pytest.approx(background, abs=1)


def test_a_dark_strip_along_the_edge_does_not_hide_a_faint_pencil():
    picture = strokes(LINE, ink=140)
    strip = np.array(picture)
    strip[100:300, :60] = 10 + 8 * abs(np.arange(200) % 16 - 8)[:, np.newaxis]  # grained wood
    np.testing.assert_allclose(read_digit.find_digit(grey(strip)), read_digit.find_digit(picture),
                               atol=0.1)


def test_a_mark_that_the_edge_cuts_off_is_neither_the_digit_nor_part_of_it():
    ink = read_digit.find_digit(strokes([(100, 0), (100, 300)], [(250, 120), (250, 270)]))
    assert ink[200, 250] > 0.9 and not ink[:, :200].any()
    finger = strokes([(200, 0), (200, 200)], width=80)
    ink = read_digit.find_digit(strokes([(200, 215), (200, 380)], on=finger))
    assert ink[300, 200] > 0.9 and not ink[:205].any()


def test_a_glare_that_the_strokes_divide_is_no_other_digit():
    picture = Image.new("L", (400, 400), 160)
    ImageDraw.Draw(picture).ellipse([70, 165, 330, 235], fill=250)
    ink = read_digit.find_digit(strokes(LINE, on=picture, ink=10))
    assert ink[100:300, 200].min() > 0.9 and not ink[:, :180].any()


@pytest.mark.parametrize("lines, expected", [
    ([LINE], True),
    ([[(60, 100), (360, 100)], [(350, 100), (350, 260)]], True),  # a wide 7
    ([[(60, 100), (360, 100)], [(350, 100), (350, 220)]], False),  # flatter: a bar with a hook
    ([[(100, y), (300, y)] for y in range(110, 300)], False),  # a blot
    ([[(x, 20), (x, 380)] for x in range(20, 400, 60)]
     + [[(20, y), (380, y)] for y in range(20, 400, 60)], True),  # a net with 36 holes
    ([[(x, 20), (x, 380)] for x in range(20, 400, 40)]
     + [[(20, y), (380, y)] for y in range(20, 400, 40)], False)],  # 81 holes: a cloth
    ids=["line", "7", "bar", "blot", "net", "cloth"])
def test_a_blot_a_bar_and_a_net_are_no_digit(lines, expected):
    mask = strokes(*lines, on=Image.new("L", (400, 400)), width=8, ink=1)
    region, = read_digit.regions_of(np.asarray(mask))
    assert read_digit.may_be_digit(region) == expected


def regions(*drawn):
    """Returns the regions of ellipses (label, box, 0) and open rings (label, box, width)."""
    labels = Image.new("L", (400, 400))
    pen = ImageDraw.Draw(labels)
    for label, box, width in drawn:
        pen.arc(box, 10, 350, fill=label, width=width) if width else pen.ellipse(box, fill=label)
    return read_digit.regions_of(np.asarray(labels))


@pytest.mark.parametrize("drawn", [
    [(1, [100, 50, 300, 350], 0), (2, [120, 70, 280, 330], 0)],  # a 0 and its hole
    [(1, [150, 50, 250, 350], 0), (2, [185, 80, 215, 320], 0)],  # a narrow one
    [(2, [20, 20, 380, 380], 0), (1, [190, 100, 210, 300], 0)]], ids=["0", "narrow 0", "sheet"])
def test_a_hole_and_a_sheet_are_no_marks(drawn):
    assert [mark.intensity_max for mark in read_digit.without_holes(regions(*drawn))] == [1]


@pytest.mark.parametrize("inner, kept", [
    ([190, 120, 210, 300], [2]),  # a stroke in a frame
    ([120, 120, 200, 300], [1, 2])], ids=["frame", "digit"])  # the inside of an open 0
def test_a_frame_stands_off_from_what_it_surrounds(inner, kept):
    marks = regions((1, [100, 50, 300, 350], 20), (2, inner, 0))
    assert [mark.intensity_max for mark in read_digit.without_frames(marks, (400, 400))] == kept


def test_a_digit_in_two_parts_is_read_whole():
    stem, corner = [(240, 60), (240, 340)], [(120, 80), (120, 200)]
    whole, parts = (read_digit.find_digit(strokes([*corner, (x, 200)], stem)) for x in (240, 212))
    assert parts[:, 100:225].sum() > 0.8 * whole[:, 100:225].sum()


def test_smaller_marks_are_ignored_with_a_note_and_larger_ones_refused():
    with pytest.warns(read_digit.IgnoredMarks, match=r"\b1\b"):
        ink = read_digit.find_digit(strokes(LINE, [(300, 100), (300, 130)]))
    assert not ink[:, 250:].any()
    assert reason(strokes(LINE, [(300, 100), (300, 220)])) == reason(grey(two_digits()))


@pytest.mark.slow
def test_the_command_prints_how_many_marks_it_ignored_and_no_warnings_of_libraries(
        trained_file, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(trained_file.parent)
    monkeypatch.setattr(sys, "argv", ["read_digit.py", str(tmp_path / "digit.png")])
    strokes(LINE, [(300, 100), (300, 130)]).save(tmp_path / "digit.png")
    convert = Image.Image.convert

    def deprecated(*arguments, **more):
        warnings.warn("this will go", DeprecationWarning, stacklevel=2)
        warnings.warn("this may be slow", UserWarning, stacklevel=2)
        return convert(*arguments, **more)

    monkeypatch.setattr(Image.Image, "convert", deprecated)
    read_digit.main()
    answer, note = capsys.readouterr().out.splitlines()
    assert ", with probability " in answer and " 1 " in note


def test_the_stroke_between_outlines_is_the_digit():
    picture = grey(np.full([400, 400], 255.0))
    for width, fill in ((40, 0), (30, 255)):
        end = 5 if fill else 0
        ImageDraw.Draw(picture).line([(100 + end, 80), (260, 80), (260, 340 - end)], fill=fill,
                                     width=width, joint="curve")
    ink = read_digit.find_digit(picture)
    assert ink[200:300, 250:270].min() > 0.9 and ink[75:85, 120:240].min() > 0.9


def desk_alone():
    picture = paper(400, 400)
    picture[:, :120] = 50
    return picture


def blot():
    return 255 - 200 * (np.hypot(*(np.mgrid[:400, :400] - 200)) < 60)


def two_digits():
    picture = paper(400, 600)
    for left in (100, 400):
        picture[100:300, left:left + 20] = 40
    return picture


def reason(picture):
    """Returns why the finder refuses a picture."""
    with pytest.raises(read_digit.Unreadable) as refused:
        read_digit.find_digit(picture)
    return str(refused.value)


def test_what_is_not_one_digit_is_refused_each_for_its_reason():
    reasons = [reason(grey(draw())) for draw in (desk_alone, blot, two_digits)]
    assert len(set(reasons)) == 3 and reasons[0] == reason(grey(np.zeros([50, 50])))


def network(*layers):
    return keras.Sequential([keras.Input([28, 28]), *layers, keras.layers.Dense(10, "softmax")])


def test_a_network_that_reads_forwards_gives_its_outputs_along_the_way():
    images = np.random.default_rng(0).random([3, 28, 28], np.float32)
    model = network(keras.layers.Dense(8), keras.layers.LSTM(8))
    outputs = read_digit.after_every_timestep(read_digit.for_any_length(model), images)
    hidden, lstm, out = model.layers
    along_the_way = keras.layers.LSTM(8, return_sequences=True)
    along_the_way.build([None, 28, 8])
    along_the_way.set_weights(lstm.get_weights())
    np.testing.assert_allclose(outputs, out(along_the_way(hidden(images))), atol=1e-6)  # float32's
    np.testing.assert_allclose(outputs[:, -1], model(images), atol=1e-6)


@pytest.mark.parametrize("layers", [
    lambda: [keras.layers.GRU(8)],
    lambda: [keras.layers.LSTM(8, return_sequences=True), keras.layers.Dropout(0.5),
             keras.layers.SimpleRNN(8)],
    lambda: [keras.layers.Bidirectional(keras.layers.LSTM(8))],
    lambda: [keras.layers.LSTM(8, return_sequences=True), keras.layers.GlobalAveragePooling1D()]],
    ids=["GRU", "two", "bidirectional", "mean"])
def test_other_networks_read_the_first_timesteps_alone(layers):
    images = np.random.default_rng(0).random([2, 28, 28], np.float32)
    model = network(*layers())
    every_timestep = read_digit.after_every_timestep(read_digit.for_any_length(model), images)
    for length in (1, 9, 28):
        outputs = images[:, :length]
        for layer in model.layers:
            outputs = layer(outputs)
        np.testing.assert_allclose(every_timestep[:, length - 1], outputs, atol=1e-6)


def COLUMNS():
    return [keras.layers.Permute([2, 1]), keras.layers.LSTM(8)]


@pytest.mark.parametrize("layers", [
    COLUMNS,
    lambda: [keras.layers.Flatten(), keras.layers.Dense(8)],
    lambda: [keras.layers.Conv1D(8, 3), keras.layers.LSTM(8)]],  # needs three
    ids=["columns", "all at once", "three timesteps"])
def test_a_network_for_all_timesteps_at_once_is_refused(layers):
    with pytest.raises(read_digit.Unreadable, match=r"\b28\b"):
        read_digit.for_any_length(network(*layers()))


def scaled(images):
    pixels = (images / 255 - 0.1307) / 0.3081
    return pixels.astype(np.float32).reshape(-1, 28, 28)


@pytest.mark.parametrize("changes, undo", [
    (dict(rows_of=scaled), keras.layers.Rescaling(0.3081, 0.1307)),
    (dict(N_STEPS=14, N_INPUT=56), keras.layers.Reshape([28, 28]))], ids=["scaled", "14x56"])
def test_an_image_is_scaled_and_cut_as_the_edited_script_does(
        changes, undo, trained_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["read_digit.py", "digit.png"])
    strokes([(120, 80), (280, 80), (180, 340)]).save("digit.png")
    model = keras.models.load_model(trained_file)
    model.save("rnn_mnist.keras")
    read_digit.main()
    for name, value in changes.items():
        monkeypatch.setattr(rnn_mnist, name, value)
    keras.Sequential([keras.Input([rnn_mnist.N_STEPS, rnn_mnist.N_INPUT]), undo, model]).save(
        "rnn_mnist.keras")
    read_digit.main()
    expected, answer = capsys.readouterr().out.splitlines()
    assert answer == expected


def test_probabilities_may_be_rounded(tmp_path):
    model = keras.Sequential([keras.Input([28, 28]), keras.layers.Flatten(),
                              keras.layers.Dense(10, "softmax", dtype="bfloat16")])
    model.layers[-1].bias.assign(0.075 * np.arange(10))  # they add up to 0.996
    model.save(tmp_path / "a.keras")
    read_digit.load_model(tmp_path / "a.keras")


@pytest.mark.parametrize("biases", [[1] * 10, [2, -1] + [0] * 8, [np.nan] * 10])
def test_outputs_that_are_no_probabilities_are_refused(biases, tmp_path):
    model = network(keras.layers.Flatten())
    model.layers[-1].activation = keras.activations.linear
    model.layers[-1].bias.assign(biases)  # the outputs for a black image
    model.save(tmp_path / "a.keras")
    with pytest.raises(read_digit.Unreadable, match=rf" {np.sum(biases)}\b"):
        read_digit.load_model(tmp_path / "a.keras")


@pytest.mark.slow
def test_the_command_prints_a_digit_and_its_probability(trained_file, tmp_path, monkeypatch):
    images, labels = drawings()
    probabilities = np.asarray(keras.models.load_model(trained_file)(normalized(images)))
    clearest = probabilities[np.arange(DIGITS), labels].argmax()
    photo(images[clearest], np.random.default_rng(0)).save(tmp_path / "digit.jpg")
    monkeypatch.chdir(tmp_path)
    for pictures, fact in [([], r"\b0\b"), (["nothing.png"], "nothing.png"),
                           (["digit.jpg"], "rnn_mnist.keras")]:
        monkeypatch.setattr(sys, "argv", ["read_digit.py", *pictures])
        with pytest.raises(SystemExit, match=fact) as end:  # to standard error, with status 1
            read_digit.main()
        assert "\n" not in end.value.code
    # the model of a run without MNIST, with a custom function
    custom = "@keras.saving.register_keras_serializable()\ndef custom(x):\n    return x"
    variables = {"keras": keras}
    exec(custom, variables)
    model = keras.models.load_model(trained_file)
    model.layers[0].activation = variables["custom"]
    model.save("rnn_mnist-uci_digits.keras")
    script(tmp_path, custom)
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "read_digit.py", "docs")
    answer = subprocess.run([sys.executable, "docs/read_digit.py", "digit.jpg"],
                            env=environment(), capture_output=True, text=True, timeout=TIMEOUT)
    assert answer.returncode == 0 and "rnn_mnist-uci_digits.keras" in answer.stderr, answer
    digit, probability = answer.stdout.removesuffix("\n").split(", with probability ")
    assert int(digit) == labels[clearest] and 0.5 < float(probability) <= 1
