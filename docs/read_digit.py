"""Reads a digit of your own with the trained network and prints: 4, with probability 0.98

    pip install pillow && python rnn_mnist.py && python docs/read_digit.py digit.png

The picture may be a photo, a scan or a drawing, dark on light or light on dark, the digit anywhere
in it. Its functions find the digit in docs/draw_digit.py, too, and ask the network after each row.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else TensorFlow starts with a page of messages
import keras
import numpy as np
from PIL import Image, ImageFilter, ImageOps

MODEL = "rnn_mnist.keras"  # the file that rnn_mnist.py saved


class Unreadable(Exception):
    """A sentence for whoever gave the picture or the model: what is wrong, and what to do."""


# the network


def load_model():
    """Returns the network in MODEL, from images [n, 28, 28] to probabilities [n, 10]."""
    other = "or set MODEL in docs/read_digit.py to another model's file"
    try:
        model = keras.models.load_model(MODEL)
    except (OSError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise Unreadable(f"{os.path.abspath(MODEL)} can't be loaded: train it by python "
                         f"rnn_mnist.py, {other}. ({reason})") from error
    shapes = model.input_shape, model.output_shape
    if shapes != ((None, 28, 28), (None, 10)):
        raise Unreadable(f"{os.path.abspath(MODEL)} makes {shapes[1]} of {shapes[0]}, not ten "
                         "digits of images of 28 rows: train one with N_STEPS, N_INPUT = 28, 28 "
                         f"and N_CLASSES = 10, {other}.")
    return model


def for_any_rows(model):
    """Returns the network for images of any number of rows, with the same weights."""
    try:
        copy = keras.models.clone_model(model, input_tensors=keras.Input([None, 28]))
    except (TypeError, ValueError) as error:
        raise Unreadable("This network takes 28 rows at a time: it can't be asked after "
                         "fewer.") from error
    copy.set_weights(model.get_weights())
    copy.compile(jit_compile=False)  # else XLA would compile it for each number of rows
    return copy


def after_every_row(model, images):
    """Returns what a network `for_any_rows` says after each of the rows: [n, 28, 10].

    It gets the first row of the images [n, 28, 28] alone, then the first two, and so on. To a
    network that reads forwards this is the same as to ask it on its way; one that reads backwards,
    too, or takes the mean over the rows, says what it would if the image ended there.
    """
    return np.stack([model.predict_on_batch(images[:, :row]) for row in range(1, 29)], axis=1)


# brightness and ink, all [height, width]


def brightness_of(picture):
    """Returns a Pillow image's brightness, float32, 0 to 255, its longer side 300 to 600 pixels."""
    values = np.asarray(picture)
    if picture.mode == "F":  # numbers of any range
        low, high = values.min(), values.max()
        picture = Image.fromarray(np.uint8(255 * (values - low) / max(high - low, 1e-9)))
    elif picture.mode.startswith("I"):  # 16 bits, of which Pillow would cut off all above 255
        picture = Image.fromarray(np.uint8(values / 257))
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


def without_gaps(line):
    """Returns a line of brightness in which what is dark on less than 0.8 of it is bright, too."""
    width = round(0.8 * line.size)
    windows = np.lib.stride_tricks.sliding_window_view
    brightest = windows(np.pad(line, width // 2, mode="edge"), width).max(axis=1)[:line.size]
    return windows(np.pad(brightest, width // 2, mode="edge"), width).min(axis=1)[:line.size]


def filled(brightness):
    """Returns the brightness with what is dark filled up, but not at the picture's edge.

    It is filled as if by water: as high as the lowest way out to the edge. Dark places at the edge
    are a way out if they take 0.8 of a side, as a desk does; those of a digit that was cut out
    closely, or of a ruled line, are not.
    """
    level = np.full_like(brightness, 255)
    sides = [(each(level), each(brightness)) for each in (
        lambda image: image, lambda image: image[::-1],
        lambda image: image.T, lambda image: image.T[::-1])]
    for water, ground in sides:
        water[0] = np.minimum(water[0], without_gaps(ground[0]))
    while True:
        before = level.copy()
        for water, ground in sides:  # from each side to the other
            for line, previous, below in zip(water[1:], water, ground[1:]):
                np.minimum(line, np.maximum(previous, below), out=line)
        if (before - level).max() < 2:
            return np.maximum(level, brightness)


def parts_of(ink):
    """Returns the parts of the ink that hang together, each a bool array, the largest first.

    Parts of less than a twentieth of the largest part's pixels are left out.
    """
    number = np.arange(ink.size).reshape(ink.shape)
    inked = ink.ravel() > 0.5
    pairs = np.hstack([np.stack([one, other])[:, inked[one] & inked[other]] for one, other in (
        (number[:, 1:], number[:, :-1]), (number[1:], number[:-1]),
        (number[1:, 1:], number[:-1, :-1]), (number[1:, :-1], number[:-1, 1:]))])
    name = number.ravel().copy()  # of each pixel: in the end the first number in its part
    while True:
        one, other = name[pairs]
        if np.array_equal(one, other):
            break
        np.minimum.at(name, np.maximum(one, other), np.minimum(one, other))
        name = name[name]
    names, sizes = np.unique(name[inked], return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    return [(name == names[n]).reshape(ink.shape) for n in order if sizes[n] > sizes.max() / 20]


def box_of(part, margin=0):
    """Returns the slices of rows and of columns that hold a part, and a margin around it."""
    places = [np.flatnonzero(part.any(axis=axis)) for axis in (1, 0)]
    return tuple(slice(max(0, place[0] - margin), place[-1] + 1 + margin) for place in places)


def size_of(part):
    """Returns the longer side of the box around a part."""
    return max(part[box_of(part)].shape) if part.any() else 0


def steepness_of(ink):
    """Returns how much the ink changes at each pixel; a part's adds up to its outline."""
    return np.hypot(*np.gradient(np.float32(ink)))


def width_of(ink):
    """Returns how wide the strokes are: their area by half of their outline."""
    return 2 * ink.sum() / steepness_of(ink).sum()


def at_edge(part):
    """Returns how much of a part's outline is at the picture's edge, 0 to 1."""
    length = sum(side.sum() for side in (part[0], part[-1], part[:, 0], part[:, -1]))
    return length / (length + steepness_of(part[box_of(part, 2)]).sum())


def is_soft(part, steepness):
    """Returns whether the ink changes slowly on a quarter of a part's outline: a shadow."""
    box = box_of(part, 2)
    outline = steepness[box][steepness_of(part[box]) > 0]
    return np.percentile(outline, 25) < 3 / size_of(part)


def is_framed(part, others):
    """Returns whether `others` are on all four sides of a part; a dot in a 0 does not count."""
    accumulate = np.logical_or.accumulate
    inside = (accumulate(others) & accumulate(others[::-1])[::-1] & accumulate(others, axis=1)
              & accumulate(others[:, ::-1], axis=1)[:, ::-1])
    height, outer_height = (np.ptp(np.flatnonzero(each.any(axis=1))) for each in (part, others))
    return (inside & part).sum() > 0.9 * part.sum() and height > outer_height / 4


def without(parts, ink):
    """Returns the ink without some of its parts and their grey edges."""
    found = Image.fromarray(np.uint8(255 * np.logical_or.reduce(parts)))
    return np.where(found.filter(ImageFilter.MaxFilter(9)), 0, ink)


# the digit


def ink_on(brightness):
    """Returns what is dark, but for shadows and what is at the picture's edge, and its contrast.

    It is ink from 0 to 1; the contrast is 0 where nothing stands out from the noise.
    """
    difference = filled(brightness) - brightness
    pairs = difference.ravel()[10:] - difference.ravel()[:-10]  # of pixels ten apart
    noise = np.percentile(abs(pairs), 25) / 0.45  # standard deviation; a quarter are paper
    while difference.max() > max(10, 8 * noise):
        contrast = np.median(difference[difference > difference.max() / 2])
        ink = np.minimum(difference / contrast, 1)
        parts, steepness = parts_of(ink), steepness_of(ink)
        limit = 0 if min(map(at_edge, parts)) == 0 else 1 / 3  # a digit cut out closely has less
        stray = [part for part in parts if at_edge(part) > limit or is_soft(part, steepness)]
        if not stray:
            return ink, contrast
        difference = without(stray, difference)
    return difference, 0


def find_digit(picture):
    """Returns the ink, 0 to 1, of the digit in a Pillow image: float32 [height, width]."""
    brightness = brightness_of(picture)
    (dark, contrast), (light, light_contrast) = ink_on(brightness), ink_on(255 - brightness)
    if not max(contrast, light_contrast):
        raise Unreadable("shows no digit: nothing in it stands out from its ground")
    if min(contrast, light_contrast) < max(contrast, light_contrast) / 2:
        return digit_of(dark if contrast > light_contrast else light)
    # A dark digit may have light holes, and a light sheet on a dark desk a dark digit. The outer
    # one is the digit, unless it is as thick as only a sheet is, and the inner one is not.
    found = [(ink, parts_of(ink)) for ink in (dark, light)]
    found.sort(key=lambda each: size_of(np.logical_or.reduce(each[1])))
    (inner, (digit, *_)), (outer, (sheet, *_)) = found
    is_sheet = (width_of(sheet) > max(0.2 * size_of(sheet), 2 * width_of(digit))
                and size_of(digit) > size_of(sheet) / 4)
    return digit_of(inner if is_sheet else outer)


def digit_of(ink):
    """Returns the ink of the one digit among it, its strokes as thick as MNIST's at least."""
    while True:
        parts = parts_of(ink)
        every = np.logical_or.reduce(parts)
        outside = [part for part in parts
                   if len(parts) == 1 or not is_framed(part, every & ~part)]
        if len(outside) == len(parts):
            break
        ink = without(outside, ink)
        ink = ink / ink.max()
    largest = max(parts, key=size_of)
    size = size_of(largest)
    near = box_of(largest, size // 8)  # a digit's own parts are nearer than another digit
    far = [part for part in parts if not part[near].any()]
    if any(size_of(part) > size / 3 for part in far):
        raise Unreadable("shows more than one thing that may be the digit: leave one in it")
    digit = np.logical_or.reduce([part for part in parts if not any(part is each for each in far)])
    if width_of(digit) > 0.4 * size_of(digit):
        raise Unreadable("shows no digit: what stands out in it has no strokes")
    reach = Image.fromarray(np.uint8(255 * digit)).filter(ImageFilter.MaxFilter(5))  # grey edges
    ink = np.where(reach, np.clip(1.5 * ink - 0.25, 0, 1), 0)
    return with_thick_strokes(ink.astype(np.float32))


def with_thick_strokes(ink):
    """Returns the ink as by a pen of two of MNIST's pixels, if it is thinner than theirs are."""
    pixel = size_of(ink > 0.5) / 20
    if width_of(ink) > 1.2 * pixel:
        return ink
    pen = ImageFilter.MaxFilter(round(2 * pixel - width_of(ink)) // 2 * 2 + 1)  # it must be odd
    return np.asarray(Image.fromarray(np.uint8(255 * ink)).filter(pen), np.float32) / 255


def as_in_mnist(ink):
    """Returns a digit as MNIST's makers put it: float32 [28, 28].

    They scaled it into 20 by 20 pixels and moved its centre of mass to the middle of 28 by 28.
    """
    digit = ink[box_of(ink > 0.5)]
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


def read_picture(path):
    """Returns the digit in a picture's file as MNIST has it, float32 [28, 28]."""
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(f"{path} can't be read as a picture: {error}.") from error
    try:
        return as_in_mnist(find_digit(picture))
    except Unreadable as error:
        raise Unreadable(f"{path} {error}.") from error


def main():
    if len(sys.argv) != 2:
        sys.exit("It reads one picture: python docs/read_digit.py digit.png")
    try:
        image, model = read_picture(sys.argv[1]), load_model()
    except Unreadable as error:
        sys.exit(str(error))
    probabilities = model.predict_on_batch(image[np.newaxis])[0]
    print(f"{probabilities.argmax()}, with probability {probabilities.max():.2f}")


if __name__ == "__main__":
    main()
