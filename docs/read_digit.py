"""Reads a digit of your own with the trained network and prints: 4, with probability 0.98

    pip install pillow && python rnn_mnist.py && python docs/read_digit.py digit.png

The picture may be a photo, a scan or a drawing, dark on light or light on dark, the digit anywhere
in it.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else TensorFlow starts with a page of messages
import keras
import numpy as np
from PIL import Image, ImageFilter, ImageOps

MODEL = "rnn_mnist.keras"  # the file that rnn_mnist.py saved


def read_picture(path):
    """Returns a picture's brightness, float32 [height, width], the longer of them 300 to 600."""
    with Image.open(path) as picture:
        if picture.mode.startswith("I"):  # 16 bits, of which Pillow would cut off all above 255
            picture = Image.fromarray((np.asarray(picture) / 257).astype(np.uint8))
        picture = ImageOps.exif_transpose(picture).convert("RGBA")  # a phone says how it was held
    scale = np.clip(max(picture.size), 300, 600) / max(picture.size)
    size = [max(1, round(scale * side)) for side in picture.size]
    picture = picture.resize(size, reducing_gap=3)
    brightness, opaque = picture.convert("L"), picture.getchannel("A")
    share, seen = np.mean(opaque) / 255, np.average(brightness, weights=np.add(opaque, 1e-9))
    # Transparent around the paper: more paper. Only the digit painted: what it stands out from.
    ground = seen if share > 0.5 else 255 * (seen < 128)
    flat = Image.new("L", picture.size, round(ground))
    flat.paste(brightness, mask=opaque)
    return np.asarray(flat.filter(ImageFilter.BoxBlur(1)), np.float32)  # evens out noise


def find_ink(brightness):
    """Returns how much of each pixel is ink, 0 to 1; None where nothing stands out from the paper.

    The light on the paper may be uneven: a polynomial of second degree is fitted to it.
    """
    x, y = np.meshgrid(*(np.linspace(-1, 1, side) for side in brightness.shape[::-1]))
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])
    some, some_terms = brightness[::2, ::2], terms[:, ::2, ::2]  # enough of them for the fit
    margin = np.maximum(abs(x), abs(y))[::2, ::2] > 0.9
    difference = some - np.median(some[margin])
    for _ in range(6):  # the paper is what is about as bright as the fit, at first as the margin
        paper = abs(difference) <= max(5, abs(difference).max() / 4)
        light = np.linalg.lstsq(some_terms[:, paper].T, some[paper], rcond=None)[0]
        difference = some - np.tensordot(light, some_terms, 1)
    difference = brightness - np.tensordot(light, terms, 1)
    contrast = abs(difference).max()
    pairs = difference.ravel()[10:] - difference.ravel()[:-10]  # of pixels ten apart
    noise = np.percentile(abs(pairs), 25) / 0.45  # standard deviation; a quarter are paper
    if contrast < max(10, 8 * noise):
        return None
    ink = difference / contrast * np.sign(np.sum(difference ** 3))  # dark or light, it is rarer
    return np.clip(1.5 * ink - 0.25, 0, 1).astype(np.float32)


def without_specks(ink):
    """Returns the ink without parts of less than a twentieth of the largest part's pixels."""
    left, parts = set(zip(*np.nonzero(ink > 0.5))), []
    while left:
        part = [left.pop()]
        for y, x in part:  # which grows meanwhile
            beside = {(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= beside
            part.extend(beside)
        parts.append(part)
    kept = np.zeros(ink.shape, np.uint8)
    for part in parts:
        if len(part) > max(map(len, parts)) / 20:
            kept[tuple(zip(*part))] = 255
    near = np.asarray(Image.fromarray(kept).filter(ImageFilter.MaxFilter(5)))  # their grey edges
    return np.where(near, ink, 0)


def box_of(ink):
    """Returns the slices of rows and of columns that hold the ink."""
    places = [np.flatnonzero((ink > 0.5).any(axis=axis)) for axis in (1, 0)]
    return tuple(slice(place[0], place[-1] + 1) for place in places)


def with_thick_strokes(ink):
    """Returns the ink as by a pen of two of MNIST's pixels, if it is thinner than theirs are."""
    width = 2 * ink.sum() / np.hypot(*np.gradient(ink)).sum()  # a stroke's area by half its edge
    pixel = max(ink[box_of(ink)].shape) / 20
    if width > 1.2 * pixel:
        return ink
    pen = ImageFilter.MaxFilter(round(2 * pixel - width) // 2 * 2 + 1)  # its size must be odd
    return np.asarray(Image.fromarray(np.uint8(255 * ink)).filter(pen), np.float32) / 255


def find_digit(path):
    """Returns the ink of the digit in a picture, float32 [height, width], or ends the program."""
    try:
        brightness = read_picture(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        sys.exit(f"{path} can't be read as a picture: {error}.")
    ink = find_ink(brightness)
    if ink is None or not (ink > 0.5).any():
        sys.exit(f"{path} shows no digit: nothing in it stands out from its ground.")
    return with_thick_strokes(without_specks(ink))


def as_in_mnist(ink):
    """Returns a digit as MNIST's makers put it: float32 [28, 28].

    They scaled it into 20 by 20 pixels and moved its centre of mass to the middle of 28 by 28.
    """
    digit = ink[box_of(ink)]
    height, width = (max(1, round(20 * side / max(digit.shape))) for side in digit.shape)
    digit = np.asarray(Image.fromarray(digit).resize([width, height], Image.Resampling.BOX))
    corner = []
    for axis, side in enumerate(digit.shape):
        centre = np.average(np.arange(side) + 0.5, weights=digit.sum(axis=1 - axis))
        corner.append(int(np.clip(round(14 - centre), 0, 28 - side)))
    top, left = corner
    image = np.zeros([28, 28], np.float32)
    image[top:top + height, left:left + width] = digit
    return image


def main():
    if len(sys.argv) != 2:
        sys.exit("It reads one picture: python docs/read_digit.py digit.png")
    image = as_in_mnist(find_digit(sys.argv[1]))
    try:
        model = keras.models.load_model(MODEL)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        sys.exit(f"{MODEL} can't be loaded: train it by python rnn_mnist.py. ({reason})")
    probabilities = keras.ops.convert_to_numpy(model(image[np.newaxis]))[0]
    print(f"{probabilities.argmax()}, with probability {probabilities.max():.2f}")


if __name__ == "__main__":
    main()
