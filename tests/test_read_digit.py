"""docs/read_digit.py: a digit in a picture, however it was drawn, is read as the data's own are."""

import importlib.util
import subprocess
import sys

import keras
import numpy as np
import pytest

import rnn_mnist
from conftest import ROOT, TIMEOUT, environment

Image, ImageDraw = map(pytest.importorskip, ("PIL.Image", "PIL.ImageDraw"))

spec = importlib.util.spec_from_file_location("read_digit", ROOT / "docs" / "read_digit.py")
read_digit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(read_digit)

DIGITS = 30


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


KINDS = [(centred, "png"), (light_on_dark, "bmp"), (tiny, "png"), (filling, "gif"),
         (painted(0), "png"), (painted(255), "png"), (photo, "webp"), (turned, "jpg"),
         (specked, "png")]


def normalized(images):
    """Returns clean drawings as MNIST's makers would have put them: float32 [n, 28, 28], 0 to 1."""
    large = (np.kron(image, np.ones([8, 8])).astype(np.float32) / 255 for image in images)
    return np.stack([*map(read_digit.as_in_mnist, large)])


@pytest.fixture(scope="module")
def model():
    """The network, trained for a while on the sample's digits, normalized as MNIST's are."""
    (images, labels), _ = rnn_mnist.read_uci_digits()
    keras.utils.set_random_seed(0)
    model = rnn_mnist.build_model()
    model.fit(normalized(images[..., 0]), labels, batch_size=32, epochs=10, verbose=0)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("draw, ending", KINDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_picture_is_read_as_the_data_are(draw, ending, model, tmp_path):
    images, labels = drawings()
    generator = np.random.default_rng(0)
    pictures = []
    for image in images:
        picture, options = draw(image, generator)
        picture.save(tmp_path / f"digit.{ending}", **options)
        pictures.append(read_digit.as_in_mnist(read_digit.find_digit(tmp_path / f"digit.{ending}")))
    right, of_data = (np.asarray(model(np.float32(x))).argmax(axis=1) == labels
                      for x in (pictures, normalized(images)))
    assert of_data.mean() > 0.85
    assert right.mean() >= of_data.mean() - 0.1  # a tenth of thirty is three digits


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
    with pytest.raises(SystemExit, match="shows no digit"):
        read_digit.find_digit(tmp_path / "digit.png")


@pytest.mark.parametrize("content", [None, b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_a_file_that_is_no_picture_is_told(content, tmp_path):
    if content is not None:
        (tmp_path / "digit.png").write_bytes(content)
    with pytest.raises(SystemExit, match="can't be read as a picture"):
        read_digit.find_digit(tmp_path / "digit.png")


@pytest.mark.slow
def test_the_command_prints_a_digit_and_its_probability(model, tmp_path, monkeypatch):
    images, labels = drawings()
    probabilities = np.asarray(model(normalized(images)))
    clearest = probabilities[np.arange(DIGITS), labels].argmax()
    photo(images[clearest], np.random.default_rng(0))[0].save(tmp_path / "digit.jpg")
    monkeypatch.chdir(tmp_path)
    for pictures, sentence in [([], "It reads one picture"), (["nothing.png"], "can't be read"),
                               (["digit.jpg"], "rnn_mnist.keras can't be loaded")]:
        monkeypatch.setattr(sys, "argv", ["read_digit.py", *pictures])
        with pytest.raises(SystemExit, match=sentence) as end:  # to standard error, with status 1
            read_digit.main()
        assert "\n" not in end.value.code
    model.save("rnn_mnist.keras")
    answer = subprocess.run([sys.executable, ROOT / "docs" / "read_digit.py", "digit.jpg"],
                            env=environment(), capture_output=True, text=True, timeout=TIMEOUT)
    assert answer.returncode == 0, answer.stderr
    digit, probability = answer.stdout.removesuffix("\n").split(", with probability ")
    assert int(digit) == labels[clearest] and 0.5 < float(probability) <= 1
