"""Reads a digit of your own with the trained network and prints: 4, with probability 0.98

    pip install scikit-image && python rnn_mnist.py && python docs/read_digit.py digit.png

The picture may be a photo, a scan or a drawing, dark on light or light on dark, the digit anywhere
in it. Its functions find the digit in docs/draw_digit.py, too, and ask the network after each row.
"""

import os
import pathlib
import sys
import warnings
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import rnn_mnist  # noqa: F401, for a model may need its functions; it quiets TensorFlow, too
import keras
import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage
from skimage import measure, morphology, transform

MODEL = "rnn_mnist.keras"  # the file that rnn_mnist.py saved
WITHOUT_MNIST = "rnn_mnist-uci_digits.keras"  # the file of a run that could not have MNIST


class Unreadable(Exception):
    """A sentence for whoever gave the picture or the model: what is wrong, and what to do."""


class LeftOut(UserWarning):
    """A sentence on what beside the digit is left out."""


# the network


def load_model(path=MODEL, steps=28):
    """Returns the network in a file, from images [n, steps, 784 / steps] to probabilities [n, 10].

    Each of the steps is a row; with 14 of them, for example, it is two of the image's 28.
    """
    other = "" if path != MODEL else ", or set MODEL in docs/read_digit.py to another model's file"
    if path == MODEL and not os.path.exists(path) and os.path.exists(WITHOUT_MNIST):
        path = WITHOUT_MNIST
        print(f"There is no {MODEL}, so {path} reads, which saw fewer digits than MNIST has.",
              file=sys.stderr)
    try:
        model = keras.models.load_model(path)
    except Exception as error:  # a broken file can fail in any way
        reason = str(error).partition("\n")[0]
        if os.path.exists(path) and not zipfile.is_zipfile(path):  # 'not found' to Keras
            reason = "The file is there, but it is empty, cut short or no .keras file."
        raise Unreadable(f"{os.path.abspath(path)} can't be loaded: run rnn_mnist.py, which trains "
                         f"it{other}. ({reason})") from error
    shapes = model.input_shape, model.output_shape
    if shapes != ((None, steps, 784 // steps), (None, 10)):
        raise Unreadable(f"{os.path.abspath(path)} makes {shapes[1]} of {shapes[0]}, not ten "
                         f"digits of images of {steps} rows: train one with N_STEPS, N_INPUT = "
                         f"{steps}, {784 // steps} and N_CLASSES = 10{other}.")
    return model


def for_any_rows(model):
    """Returns the network for images of any number of rows, with the same weights."""
    _, rows, inputs = model.input_shape
    try:
        copy = keras.models.clone_model(model, input_tensors=keras.Input([None, inputs]))
        copy.set_weights(model.get_weights())
        copy.compile(jit_compile=False)  # else XLA would compile it for each number of rows
        after_every_row(copy, np.zeros([1, rows, inputs], np.float32))
    except Exception as error:  # each kind of layer has its own for what it can't be asked
        raise Unreadable(f"This network takes {rows} rows at a time: it can't be asked after "
                         "fewer.") from error
    return copy


def after_every_row(model, images):
    """Returns what a network `for_any_rows` says after each of the rows: [n, rows, 10].

    It gets the first row of the images [n, rows, inputs] alone, then the first two, and so on. To a
    network that reads forwards this is the same as to ask it on its way; one that reads backwards,
    too, or takes the mean over the rows, says what it would if the image ended there.
    """
    rows = images.shape[1]
    return np.stack([model.predict_on_batch(images[:, :row + 1]) for row in range(rows)], axis=1)


# brightness and ink, all [height, width]


def brightness_of(picture):
    """Returns a Pillow image's brightness, float32, 0 to 255, its longer side 300 to 600 pixels."""
    picture = ImageOps.exif_transpose(picture)  # a phone says how it was held
    if picture.mode[0] in "IF":  # numbers of any range, in which some may be missing
        values = np.nan_to_num(np.asarray(picture, np.float64), posinf=0, neginf=0)
        values = (values - values.min()) / max(np.ptp(values), 1e-9)
        picture = Image.fromarray(np.uint8(255 * values))
    picture = picture.convert("RGBA")
    scale = np.clip(max(picture.size), 300, 600) / max(picture.size)
    size = [max(1, round(scale * side)) for side in picture.size]
    picture = picture.resize(size, reducing_gap=3)
    brightness, opaque = np.asarray(picture.convert("L")), np.asarray(picture.getchannel("A")) / 255
    # Transparent around the paper: more paper. Only the digit painted: what it stands out from.
    seen = np.average(brightness, weights=opaque + 1e-9)
    ground = seen if opaque.mean() > 0.5 else 255 * (seen < 128)
    flat = np.float32(ground + opaque * (brightness - ground))
    return ndimage.uniform_filter(flat, 3)  # evens out noise


def filled(brightness):
    """Returns the brightness with what is dark filled up, but not at the picture's edge.

    It is filled as if by water: as high as the lowest way out to the edge. Dark places at the edge
    are a way out if they take 0.8 of a side, as a desk does; those of a digit that was cut out
    closely, or of a ruled line, are not.
    """
    ground = brightness[::2, ::2]  # four times as quick
    water = np.full_like(ground, 255)
    for level, edge in [(water, ground), (water.T, ground.T)]:
        for side in (0, -1):
            way_out = ndimage.grey_closing(edge[side], round(0.8 * edge[side].size) + 1)
            level[side] = np.minimum(level[side], way_out)
    water = morphology.reconstruction(water, ground, "erosion", footprint=morphology.disk(1))
    height, width = brightness.shape
    water = water.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.maximum(ndimage.minimum_filter(water, 3), brightness)  # not over sharp edges


def parts_of(kinds):
    """Returns what hangs together in an image of whole numbers, the longest first; 0 is no part.

    They are scikit-image's regions. What takes less than a ten thousandth of the image is a speck.
    """
    parts = measure.regionprops(measure.label(kinds), kinds)
    return sorted([part for part in parts if part.area > kinds.size / 10000],
                  key=size_of, reverse=True)


def size_of(part):
    """Returns the longer side of the box around a part."""
    return max(part.image.shape)


def width_of(part):
    """Returns how wide a part's strokes are: its area by half of its outline."""
    return 2 * part.area / max(part.perimeter, 1)


def where(parts, shape, reach=0):
    """Returns where some parts are, and what is within reach of them: bool, of this shape."""
    mask = np.zeros(shape, bool)
    for part in parts:
        mask[part.slice] |= part.image
    return morphology.isotropic_dilation(mask, reach) if reach else mask


def at_edge(part, shape):
    """Returns how much of a part's outline is at the edge of a picture of this shape, 0 to 1."""
    sides = np.array(part.bbox) == [0, 0, *shape]
    lines = part.image[0], part.image[:, 0], part.image[-1], part.image[:, -1]
    return sum(line.sum() for side, line in zip(sides, lines) if side) / max(part.perimeter, 1)


def is_soft(part, steepness):
    """Returns whether the ink changes slowly on a quarter of a part's outline: a shadow."""
    outline = part.image ^ ndimage.binary_erosion(part.image)
    return np.percentile(steepness[part.slice][outline], 25) < 3 / size_of(part)


def ink_on(brightness):
    """Returns what is dark, but for shadows and what is along the picture's edge, and its contrast.

    It is ink from 0 to 1; the contrast is 0 where nothing stands out from the noise.
    """
    difference = filled(brightness) - brightness
    pairs = difference.ravel()[10:] - difference.ravel()[:-10]  # of pixels ten apart
    noise = np.percentile(abs(pairs), 25) / 0.45  # standard deviation; a quarter are paper
    while difference.max() > max(10, 8 * noise):
        contrast = np.median(difference[difference > difference.max() / 2])
        ink = np.minimum(difference / contrast, 1)
        steepness = ndimage.gaussian_gradient_magnitude(ink, 1)
        stray = [part for part in parts_of(np.uint8(ink > 0.5))
                 if at_edge(part, ink.shape) > 1 / 3 or is_soft(part, steepness)]
        if not stray:
            return ink, contrast
        difference[where(stray, ink.shape, reach=4)] = 0
    return difference, 0


# the digit


def find_digit(picture):
    """Returns the ink, 0 to 1, of the digit in a Pillow image: float32 [height, width]."""
    brightness = brightness_of(picture)
    found = [ink_on(brightness), ink_on(255 - brightness)]
    strongest = max(contrast for _, contrast in found)
    if not strongest:
        raise Unreadable("shows no digit: nothing in it stands out from its ground")
    return digit_of(*[ink for ink, contrast in found if contrast >= strongest / 2])


def has_strokes(part):
    """Returns whether a part may be a digit: no blot, not flat as a bar, no net as of a cloth."""
    height, width = part.image.shape
    return (width_of(part) < 0.4 * size_of(part) and width < 2 * height
            and part.euler_number > -50)  # 1, less one for each hole


def encloses(outer, inner):
    """Returns whether a part lies in a hole of another one."""
    row, column = np.subtract(inner.coords[0], outer.bbox[:2])
    height, width = outer.image.shape
    return 0 <= row < height and 0 <= column < width and outer.image_filled[row, column]


def thickness_of(part):
    """Returns how thick a part is where it is thickest."""
    return 2 * ndimage.distance_transform_edt(np.pad(part.image, 1)).max()


def is_ground(outer, inner):
    """Returns whether one thing lies on the other: a stroke, the longer the surer, on a sheet."""
    thickness = thickness_of(outer) / size_of(outer)
    return thickness ** 2 * size_of(inner) / width_of(inner) > 0.45


def is_outline(outer, inner):
    """Returns whether the outer one only outlines the inner one, a stroke; a 0's hole is none."""
    thickness = thickness_of(inner)
    bent = inner.area_filled < 0.8 * inner.area_convex or inner.area_filled > 1.2 * inner.area
    return (size_of(inner) > 0.7 * size_of(outer) and thickness > thickness_of(outer)
            and thickness < size_of(inner) * (0.3 if bent else 0.18))


def without_holes(parts):
    """Returns the parts without holes in others, what others lie on, and outlines of others."""
    holes, under, outlined = set(), set(), set()
    for outer in [part for part in parts if part.area_filled > part.area]:
        for inner in parts:
            if (inner.intensity_max == outer.intensity_max or outer.label in under
                    or inner.label in holes or not encloses(outer, inner)):
                continue
            if is_outline(outer, inner):
                outlined.add(inner.label)
                under.add(outer.label)
            elif outer.label not in outlined and is_ground(outer, inner):
                under.add(outer.label)
            else:
                holes.add(inner.label)
    return [part for part in parts if part.label not in holes | under]


def without_frames(parts, shape):
    """Returns the parts without what is around others or on both sides, closed or not.

    Such are boxes, circles, brackets and bars; in a picture of this shape they are longer.
    """
    frames = set()
    for part in parts:
        around = [each for each in parts
                  if size_of(each) > 1.2 * size_of(part) and each.label not in frames]
        if (around and has_strokes(part) and not at_edge(part, shape)
                and size_of(part) > size_of(around[0]) / 4):
            mask = where(around, shape)
            inside = morphology.convex_hull_image(mask)[part.slice][part.image].mean() > 0.9
            if inside and not mask[where([part], shape, reach=4)].any():  # else the hole of a 6
                frames.update(each.label for each in around)
    return [part for part in parts if part.label not in frames]


def digit_of(*inks):
    """Returns the ink of the one digit among it, its strokes as thick as MNIST's at least.

    Where there are two kinds of ink, [height, width], the first is dark and the other one light.
    """
    shape = inks[0].shape
    kinds = np.select([ink > 0.5 for ink in inks], [1, 2][:len(inks)])
    things = without_frames(without_holes(parts_of(kinds)), shape)
    strokes = [part for part in things if has_strokes(part)]
    if not strokes:
        raise Unreadable("shows no digit: what stands out in it has no strokes")
    largest = min(strokes, key=lambda part: at_edge(part, shape) > 0)  # the first, if it can be
    size, width = size_of(largest), width_of(largest)
    top, left, bottom, right = largest.bbox  # a digit's own parts are nearer than another digit
    margin = size // 8
    near = np.s_[max(0, top - margin):bottom + margin, max(0, left - margin):right + margin]
    between = where([largest], shape, reach=4)  # a glare that its strokes divide
    own, others = [], []
    for part in things:
        same = part.intensity_max == largest.intensity_max
        alike = width / 2 < width_of(part) < 2 * width
        if same and where([part], shape)[near].any() and (alike or not at_edge(part, shape)):
            own.append(part)
        elif not at_edge(part, shape) and not between[part.slice][part.image].any():
            if (size_of(part) > size / 3 and part.area > largest.area / 20
                    and (alike or has_strokes(part))):
                raise Unreadable("shows more than one thing that may be the digit: leave one in it")
            others.append(part)
    if others:
        warnings.warn(f"It leaves out {len(others)} smaller or thicker things beside the digit.",
                      LeftOut)
    ink = inks[int(largest.intensity_max) - 1]
    ink = np.where(where(own, shape, reach=2), ink, 0)  # grey edges
    return with_thick_strokes(ink.astype(np.float32))


def with_thick_strokes(ink):
    """Returns the ink as by a pen of two of MNIST's pixels, if it is thinner than theirs are."""
    digit, = measure.regionprops(np.uint8(ink > 0.5))
    pixel, width = size_of(digit) / 20, width_of(digit)
    if width > 1.2 * pixel:
        return ink
    return np.float32(morphology.isotropic_dilation(ink > 0.5, pixel - width / 2))


def as_in_mnist(ink):
    """Returns a digit as MNIST's makers put it: float32 [28, 28].

    They scaled it into 20 by 20 pixels and moved its centre of mass to the middle of 28 by 28.
    """
    digit, = measure.regionprops(np.uint8(ink > 0.5), ink)
    size = [max(1, round(20 * side / size_of(digit))) for side in digit.image.shape]
    scaled = transform.resize_local_mean(ink[digit.slice], size)
    centre = np.add(ndimage.center_of_mass(scaled), 0.5)
    top, left = np.int64(np.clip(np.round(14 - centre), 0, np.subtract(28, size)))
    image = np.zeros([28, 28], np.float32)
    image[top:top + size[0], left:left + size[1]] = scaled
    return image


def read_picture(path):
    """Returns the digit in a picture's file as MNIST has it, float32 [28, 28]."""
    try:
        with Image.open(path) as picture:
            return as_in_mnist(find_digit(picture))
    except Unreadable as error:
        raise Unreadable(f"{path} {error}.") from error
    except Exception as error:  # Pillow's decoders have many of their own
        raise Unreadable(f"{path} can't be read as a picture: {error}.") from error


def main():
    if len(sys.argv) != 2:
        sys.exit("It reads one picture: put the name of its file behind docs/read_digit.py.")
    try:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("ignore")  # what libraries say to programmers
            warnings.simplefilter("always", LeftOut)
            image = read_picture(sys.argv[1])
        model = load_model()
    except Unreadable as error:
        sys.exit(str(error))
    probabilities = model.predict_on_batch(image[np.newaxis])[0]
    print(f"{probabilities.argmax()}, with probability {probabilities.max():.2f}")
    for note in notes:
        print(note.message)


if __name__ == "__main__":
    main()
