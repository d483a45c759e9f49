"""docs/read_digit.py: a digit in a picture, however it was drawn, is read as the data's own are.

Of docs/what_it_sees.py and docs/draw_digit.py it tests what they share: asking after every row.
"""

import shutil
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest

import rnn_mnist
from conftest import ROOT, TIMEOUT, environment, normalized, script

Image, ImageDraw = map(pytest.importorskip, ("PIL.Image", "PIL.ImageDraw"))
pytest.importorskip("skimage")
import read_digit

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
    """Returns a picture, of 0, that holds the digit somewhere."""
    picture = np.zeros([height, width])
    top, left = (generator.integers(0, all - part + 1) for all, part in
                 zip(picture.shape, digit.shape))
    picture[top:top + digit.shape[0], left:left + digit.shape[1]] = digit
    return picture


def grey(picture):
    return Image.fromarray(np.uint8(np.clip(picture, 0, 255)))


def centred(drawing, generator):
    return grey(255 - np.kron(drawing, np.ones([10, 10]))), {}


def light_on_dark(drawing, generator):
    return grey(put(enlarged(drawing, 10), 400, 300, generator)), {}


def tiny(drawing, generator):
    return grey(255 - put(enlarged(drawing, 2), 500, 700, generator)), {}


def filling(drawing, generator):
    digit = enlarged(drawing, 280 / 20)
    return grey(255 - put(digit, *(max(digit.shape),) * 2, generator)), {}


def painted(brightness):
    def draw(drawing, generator):
        opaque = np.uint8(np.clip(put(enlarged(drawing, 10), 300, 300, generator), 0, 255))
        return Image.fromarray(np.stack([np.full_like(opaque, brightness)] * 3 + [opaque], 2)), {}
    return draw


def photo(drawing, generator):
    ink = put(enlarged(drawing, 9), 300, 400, generator) / 255
    light = 130 + 80 * np.linspace(0, 1, 400) - 30 * np.linspace(-1, 1, 300)[:, np.newaxis] ** 2
    return grey(light * (1 - 0.7 * ink) + generator.normal(0, 6, ink.shape)), {}


def turned(drawing, generator):
    picture, exif = photo(drawing, generator)[0].transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned back before it is shown
    return picture, {"exif": exif}


def specked(drawing, generator):
    picture = 255 - put(enlarged(drawing, 10), 400, 400, generator)
    for y, x in generator.integers(0, 396, [8, 2]):
        picture[y:y + 3, x:x + 3] = 40
    return grey(picture), {}


def inked(drawing, light, generator, margin=20):
    """Returns a photo's part, light [height, width], with the digit written somewhere on it."""
    ink = put(enlarged(drawing, 8), *np.subtract(light.shape, 2 * margin), generator) / 255
    return light * (1 - 0.75 * np.pad(ink, margin))


def paper(height, width):
    return 205 - 30 * np.linspace(0, 1, width) + 15 * np.linspace(-1, 1, height)[:, np.newaxis]


def taken(light, generator):
    return grey(light + generator.normal(0, 4, light.shape)), {}


def lined(drawing, generator):
    light = paper(400, 400)
    light[20::40] -= 45
    light[21::40] -= 45
    return taken(inked(drawing, light, generator), generator)


def in_a_box(drawing, generator):
    light = paper(420, 420)
    light[90:330, 90:330] = inked(drawing, light[90:330, 90:330], generator, margin=15)
    picture = grey(light)
    ImageDraw.Draw(picture).rectangle([90, 90, 330, 330], outline=50, width=5)
    return taken(np.float64(picture), generator)


def in_an_open_box(drawing, generator):
    """Drawn by hand: its sides don't meet."""
    light = paper(420, 420)
    light[90:330, 90:330] = inked(drawing, light[90:330, 90:330], generator, margin=15)
    picture = grey(light)
    for side in ([(85, 92), (320, 86)], [(330, 85), (326, 318)], [(318, 330), (92, 326)],
                 [(86, 320), (92, 102)]):
        ImageDraw.Draw(picture).line(side, fill=50, width=5)
    return taken(np.float64(picture), generator)


def in_a_form(drawing, generator):
    """Three printed boxes in a row, the digit in the middle one."""
    light = paper(300, 780)
    light[40:260, 280:500] = inked(drawing, light[40:260, 280:500], generator, margin=15)
    picture = grey(light)
    for left in (30, 275, 520):
        ImageDraw.Draw(picture).rectangle([left, 35, left + 230, 265], outline=90, width=3)
    return taken(np.float64(picture), generator)


def on_a_desk(drawing, generator):
    """A sheet on a dark wooden desk, not quite straight."""
    down, right = np.mgrid[:480, :640]
    desk = 60 + 14 * np.sin(down / 7 + 2 * np.sin(right / 90))
    sheet = Image.fromarray(np.float32(inked(drawing, paper(340, 460), generator)))
    photo = Image.new("F", (640, 480), -1.0)
    photo.paste(sheet, (90, 70))
    photo = np.asarray(photo.rotate(generator.uniform(-10, 10), fillcolor=-1.0))
    return taken(np.where(photo < 0, desk, photo), generator)


def beside_a_desk(drawing, generator):
    light = np.full([480, 640], 50.0)
    light[:, 180:] = inked(drawing, paper(480, 460), generator)
    return taken(light, generator)


def with_a_dark_corner(drawing, generator):
    """In pencil, the black desk in a corner."""
    light = paper(480, 480)
    light[:300, :300] = 0.5 * light[:300, :300] + 0.5 * inked(
        drawing, light[:300, :300], generator)
    light[np.add(*np.mgrid[:480, :480]) > 700] = 30
    return taken(light, generator)


def with_dark_edges(drawing, generator):
    light = inked(drawing, paper(400, 400), generator)
    for edge in (light[:3], light[-3:], light[:, :3], light[:, -3:])[generator.integers(4):]:
        edge[:] = 20
    return taken(light, generator)


def with_the_edge_of_the_sheet(drawing, generator):
    light = paper(480, 480)
    light[:390] = inked(drawing, light[:390], generator)
    light[390:395], light[395:] = 70, 150
    return taken(light, generator)


def in_a_spiral_notebook(drawing, generator):
    light = paper(480, 480)
    light[90:] = inked(drawing, light[90:], generator)
    picture = grey(light)
    for x in range(20, 480, 40):
        ImageDraw.Draw(picture).ellipse([x - 8, 18, x + 8, 34], fill=35)
        ImageDraw.Draw(picture).line([(x, 0), (x, 26)], fill=60, width=4)
    return taken(np.float64(picture), generator)


def in_the_shadow_of_a_hand(drawing, generator):
    down, right = np.mgrid[:480, :640]
    distance = np.hypot(down - 480, right - generator.uniform(0, 640))
    shadow = 1 - 0.45 / (1 + np.exp((distance - 280) / 18))
    return taken(shadow * inked(drawing, paper(480, 640), generator), generator)


def on_a_board(drawing, generator):
    """In chalk, the board in a wooden frame."""
    light = np.full([420, 560], 180.0)
    light[25:395, 25:535] = 255 - inked(drawing, np.full([370, 510], 180.0), generator)
    return taken(light, generator)


def in_floating_point(drawing, generator):
    picture, _ = photo(drawing, generator)
    return Image.fromarray(np.asarray(picture, np.float32) / 255), {}


def in_an_open_circle(drawing, generator):
    light = paper(420, 420)
    light[95:325, 95:325] = inked(drawing, light[95:325, 95:325], generator, margin=15)
    picture, start = grey(light), generator.uniform(0, 360)
    ImageDraw.Draw(picture).arc([40, 40, 380, 380], start, start + 340, fill=50, width=6)
    return taken(np.float64(picture), generator)


def below_a_bar(drawing, generator):
    """On a white screen, under a dark bar that holds two light dots."""
    picture = grey(np.pad(255 - put(enlarged(drawing, 9), 420, 400, generator), [(100, 0), (0, 0)],
                          constant_values=35))
    for x in (60, 340):
        ImageDraw.Draw(picture).ellipse([x - 14, 36, x + 14, 64], fill=240)
    return picture, {}


def on_a_checked_cloth(drawing, generator):
    down, right = np.mgrid[:480, :640]
    cloth = 60 + 150 * ((down // 40 + right // 40) % 2)
    sheet = Image.fromarray(np.float32(inked(drawing, paper(340, 420), generator)))
    photo = Image.new("F", (640, 480), -1.0)
    photo.paste(sheet, (110, 70))
    photo = np.asarray(photo.rotate(generator.uniform(5, 15), fillcolor=-1.0))
    return taken(np.where(photo < 0, cloth, photo), generator)


def in_whole_numbers(drawing, generator):
    """Of 32 bits, but only up to 255."""
    return Image.fromarray(np.int32(np.asarray(photo(drawing, generator)[0]))), {}


KINDS = [(centred, "png"), (light_on_dark, "bmp"), (tiny, "png"), (filling, "gif"),
         (painted(0), "png"), (painted(255), "png"), (photo, "webp"), (turned, "jpg"),
         (specked, "png"), (lined, "jpg"), (in_a_box, "jpg"), (in_an_open_box, "png"),
         (in_a_form, "png"), (on_a_desk, "jpg"), (beside_a_desk, "jpg"),
         (with_a_dark_corner, "jpg"), (with_dark_edges, "png"),
         (with_the_edge_of_the_sheet, "jpg"), (in_a_spiral_notebook, "jpg"),
         (in_the_shadow_of_a_hand, "jpg"), (on_a_board, "jpg"), (in_floating_point, "tiff"),
         (in_an_open_circle, "jpg"), (below_a_bar, "png"), (on_a_checked_cloth, "jpg"),
         (in_whole_numbers, "tiff")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:It leaves out")
@pytest.mark.parametrize("draw, ending", KINDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_picture_is_read_as_the_clean_drawing_of_its_digit(draw, ending, tmp_path):
    drawn, _ = drawings()
    generator = np.random.default_rng(0)
    read = []
    for drawing in drawn:
        picture, options = draw(drawing, generator)
        picture.save(tmp_path / f"digit.{ending}", **options)
        read.append(read_digit.read_picture(tmp_path / f"digit.{ending}"))
    likeness = np.corrcoef(np.reshape(read, [DIGITS, 784]),
                           normalized(drawn).reshape(DIGITS, 784))[:DIGITS, DIGITS:]
    # none of the other drawings is more like it, though three digits are among them twice
    found = (likeness.argmax(axis=1) == np.arange(DIGITS)) & (likeness.diagonal() > 0.75)
    assert np.count_nonzero(found) >= DIGITS - 1


def test_the_digit_is_where_mnist_has_it():
    for image in drawings()[0]:
        ink = np.kron(image, np.ones([9, 9], np.float32)) / 255
        digit = read_digit.as_in_mnist(np.pad(ink, [(0, 100), (50, 0)]))
        rows, columns = np.nonzero(digit > 0.1)
        assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20
        centre = [np.average(np.arange(28) + 0.5, weights=digit.sum(axis=axis)) for axis in (1, 0)]
        assert np.abs(np.subtract(centre, 14)).max() <= 2  # not at the cost of the digit's edge


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
    np.full([200, 300], 255.0), np.zeros([50, 50]),
    np.random.default_rng(0).normal(128, 20, [300, 300]),
    np.tile(np.linspace(100, 200, 300), [200, 1])], ids=["white", "black", "noise", "shade"])
def test_a_picture_without_a_digit_is_told(picture, tmp_path):
    grey(picture).save(tmp_path / "digit.png")
    with pytest.raises(read_digit.Unreadable, match="digit.png shows no digit: nothing in it"):
        read_digit.read_picture(tmp_path / "digit.png")


@pytest.mark.parametrize("content", [None, b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_a_file_that_is_no_picture_is_told(content, tmp_path):
    if content is not None:
        (tmp_path / "digit.png").write_bytes(content)
    with pytest.raises(read_digit.Unreadable, match="digit.png can't be read as a picture"):
        read_digit.read_picture(tmp_path / "digit.png")


@pytest.mark.parametrize("width, height", [(1, 1), (1, 500), (3, 4000), (20000, 1), (2, 600)])
def test_a_picture_too_narrow_for_a_digit_is_told(width, height, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, [height, width])
    grey(noise).save(tmp_path / "digit.png")
    with pytest.raises(read_digit.Unreadable, match="digit.png shows no digit"):
        read_digit.read_picture(tmp_path / "digit.png")


def test_missing_numbers_are_no_digit():
    picture = np.full([300, 300], 200, np.float32)
    picture[100:200, 140:160] = 20
    clean = read_digit.find_digit(Image.fromarray(picture))
    picture[0, 0] = np.inf
    picture[5, 5] = np.nan
    np.testing.assert_allclose(read_digit.find_digit(Image.fromarray(picture)), clean, atol=0.1)


def strokes(*lines):
    """Returns a sheet with lines, as by a pen of 20 pixels."""
    picture = grey(paper(400, 400))
    for line in lines:
        ImageDraw.Draw(picture).line(line, fill=40, width=20)
    return picture


def test_a_digit_in_two_parts_is_read_whole():
    stem, corner = [(240, 60), (240, 340)], [(120, 80), (120, 200)]
    whole, parts = (read_digit.find_digit(strokes([*corner, (x, 200)], stem)) for x in (240, 212))
    assert parts[:, 100:225].sum() > 0.8 * whole[:, 100:225].sum()


def test_what_is_left_out_is_said():
    with pytest.warns(UserWarning, match="leaves out 1 smaller"):
        ink = read_digit.find_digit(strokes([(120, 60), (120, 340)], [(300, 100), (300, 130)]))
    assert not ink[:, 250:].any()
    with pytest.raises(read_digit.Unreadable, match="more than one thing"):
        read_digit.find_digit(strokes([(120, 60), (120, 340)], [(300, 100), (300, 220)]))


def test_the_command_says_what_is_left_out_and_nothing_of_what_libraries_say(
        trained_file, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(trained_file.parent)
    monkeypatch.setattr(sys, "argv", ["read_digit.py", str(tmp_path / "digit.png")])
    strokes([(120, 60), (120, 340)], [(300, 100), (300, 130)]).save(tmp_path / "digit.png")
    convert = Image.Image.convert

    def deprecated(*arguments, **more):
        warnings.warn("this will go", DeprecationWarning)
        warnings.warn("this may be slow", UserWarning)
        return convert(*arguments, **more)

    monkeypatch.setattr(Image.Image, "convert", deprecated)
    read_digit.main()
    answer, note = capsys.readouterr().out.splitlines()
    assert ", with probability " in answer and note.startswith("It leaves out 1 smaller")


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


@pytest.mark.parametrize("draw, sentence", [
    (desk_alone, "shows no digit"), (blot, "shows no digit: what stands out"),
    (two_digits, "shows more than one thing")],
    ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_not_one_digit_is_told(draw, sentence):
    with pytest.raises(read_digit.Unreadable, match=sentence):
        read_digit.find_digit(grey(draw()))


def network(*layers):
    return keras.Sequential([keras.Input([28, 28]), *layers, keras.layers.Dense(10, "softmax")])


def test_a_network_that_reads_forwards_is_asked_on_its_way():
    images = np.random.default_rng(0).random([3, 28, 28], np.float32)
    model = network(keras.layers.Dense(8), keras.layers.LSTM(8))
    every_row = read_digit.after_every_row(read_digit.for_any_rows(model), images)
    hidden, lstm, out = model.layers
    on_its_way = keras.layers.LSTM(8, return_sequences=True)
    on_its_way.build([None, 28, 8])
    on_its_way.set_weights(lstm.get_weights())
    np.testing.assert_allclose(every_row, out(on_its_way(hidden(images))), atol=1e-6)  # float32's
    np.testing.assert_allclose(every_row[:, -1], model(images), atol=1e-6)


@pytest.mark.parametrize("layers", [
    lambda: [keras.layers.GRU(8)],
    lambda: [keras.layers.LSTM(8, return_sequences=True), keras.layers.Dropout(0.5),
             keras.layers.SimpleRNN(8)],
    lambda: [keras.layers.Bidirectional(keras.layers.LSTM(8))],
    lambda: [keras.layers.LSTM(8, return_sequences=True), keras.layers.GlobalAveragePooling1D()]],
    ids=["GRU", "two", "both directions", "mean"])
def test_other_networks_get_the_first_rows_alone(layers):
    images = np.random.default_rng(0).random([2, 28, 28], np.float32)
    model = network(*layers())
    every_row = read_digit.after_every_row(read_digit.for_any_rows(model), images)
    for row in (1, 9, 28):
        outputs = images[:, :row]
        for layer in model.layers:
            outputs = layer(outputs)
        np.testing.assert_allclose(every_row[:, row - 1], outputs, atol=1e-6)


def COLUMNS():
    return [keras.layers.Permute([2, 1]), keras.layers.LSTM(8)]


@pytest.mark.parametrize("layers", [
    COLUMNS,
    lambda: [keras.layers.Flatten(), keras.layers.Dense(8)],
    lambda: [keras.layers.Conv1D(8, 3), keras.layers.LSTM(8)]],  # needs three
    ids=["columns", "all at once", "three rows"])
def test_a_network_that_takes_all_rows_at_once_is_told(layers):
    with pytest.raises(read_digit.Unreadable, match="takes 28 rows at a time"):
        read_digit.for_any_rows(network(*layers()))


@pytest.mark.slow
def test_the_command_prints_a_digit_and_its_probability(trained_file, tmp_path, monkeypatch):
    images, labels = drawings()
    probabilities = np.asarray(keras.models.load_model(trained_file)(normalized(images)))
    clearest = probabilities[np.arange(DIGITS), labels].argmax()
    photo(images[clearest], np.random.default_rng(0))[0].save(tmp_path / "digit.jpg")
    monkeypatch.chdir(tmp_path)
    for pictures, sentence in [([], "It reads one picture"), (["nothing.png"], "can't be read"),
                               (["digit.jpg"], "rnn_mnist.keras can't be loaded")]:
        monkeypatch.setattr(sys, "argv", ["read_digit.py", *pictures])
        with pytest.raises(SystemExit, match=sentence) as end:  # to standard error, with status 1
            read_digit.main()
        assert "\n" not in end.value.code
    # of a run without MNIST, with a function of one's own in it
    mine = "@keras.saving.register_keras_serializable()\ndef mine(rows):\n    return rows"
    variables = {"keras": keras}
    exec(mine, variables)
    model = keras.models.load_model(trained_file)
    model.layers[0].activation = variables["mine"]
    model.save("rnn_mnist-uci_digits.keras")
    script(tmp_path, mine)
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "read_digit.py", "docs")
    answer = subprocess.run([sys.executable, "docs/read_digit.py", "digit.jpg"],
                            env=environment(), capture_output=True, text=True, timeout=TIMEOUT)
    assert answer.returncode == 0 and "rnn_mnist-uci_digits.keras reads" in answer.stderr, answer
    digit, probability = answer.stdout.removesuffix("\n").split(", with probability ")
    assert int(digit) == labels[clearest] and 0.5 < float(probability) <= 1
