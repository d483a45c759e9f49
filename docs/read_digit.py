"""Reads a picture of a digit with the trained network and prints: 4, with probability 0.98

    pip install scikit-image && python rnn_mnist.py && python docs/read_digit.py digit.png

The picture may be a photo, a scan or a drawing, dark on light or light on dark, with the digit
anywhere in it. docs/draw_digit.py and docs/what_it_sees.py use its functions.
"""

import os
import pathlib
import sys
import warnings
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import rnn_mnist  # before Keras, since it silences TensorFlow

# isort: split
import keras
import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage
from skimage import measure, morphology, transform

MODEL = "rnn_mnist.keras"  # the file that rnn_mnist.py saves
WITHOUT_MNIST = "rnn_mnist-uci_digits.keras"  # the file that it saves if it cannot get MNIST


class Unreadable(Exception):
    """A picture or a model cannot be used; the message says why and what to do."""


class IgnoredMarks(UserWarning):
    """The picture has marks beside the digit; the message says how many."""


# the network


def load_model(path=MODEL):
    """Returns the model in a file, from [n, N_STEPS, N_INPUT] to probabilities [n, 10]."""
    other = "" if path != MODEL else ", or set MODEL in docs/read_digit.py to another model's file"
    if path == MODEL and not os.path.exists(path) and os.path.exists(WITHOUT_MNIST):
        path = WITHOUT_MNIST
        print(f"Using {path}, trained on fewer digits than MNIST has, since there is no {MODEL}.",
              file=sys.stderr)
    place = os.path.abspath(path)
    try:
        model = keras.models.load_model(path)
    except Exception as error:  # a broken file can fail in any way
        reason = str(error).partition("\n")[0]
        if os.path.exists(path) and not zipfile.is_zipfile(path):  # Keras says 'File not found'
            reason = "The file exists, but is empty, truncated or not a .keras file."
        raise Unreadable(f"Cannot load {place}: run rnn_mnist.py to train and save it{other}. "
                         f"({reason})") from error
    shapes = model.input_shape, model.output_shape
    expected = (None, rnn_mnist.N_STEPS, rnn_mnist.N_INPUT), (None, 10)
    if shapes != expected:
        raise Unreadable(f"{place} has the input and output shapes {shapes}, but {expected} are "
                         f"needed: run rnn_mnist.py again, with N_CLASSES = 10{other}.")
    outputs = model.predict_on_batch(sequence_of(np.zeros([28, 28])))
    total = float(outputs.sum())
    if outputs.min() < 0 or not abs(total - 1) < 0.01:  # which float16 adds up to; NaN does not
        raise Unreadable(f"{place} does not return probabilities, but values that add up to "
                         f"{total:.3g}: train it with softmax in the last layer and a loss without "
                         f"from_logits=True{other}.")
    return model


def sequence_of(image):
    """Returns an image [28, 28], 0 to 1, as the script's data: float32 [1, N_STEPS, N_INPUT]."""
    return rnn_mnist.rows_of(np.uint8(np.round(255 * image)).reshape(1, 28, 28, 1))


def for_any_length(model):
    """Returns a copy of a model, with the same weights, for any number of timesteps."""
    _, steps, inputs = model.input_shape
    try:
        copy = keras.models.clone_model(model, input_tensors=keras.Input([None, inputs]))
        copy.set_weights(model.get_weights())
        copy.compile(jit_compile=False)  # otherwise XLA compiles it for each number of timesteps
        after_every_timestep(copy, np.zeros([1, steps, inputs], np.float32))
    except Exception as error:  # each kind of layer raises its own
        raise Unreadable(f"This network reads all {steps} timesteps at once and can't answer after "
                         "fewer: use layers that accept any number of timesteps.") from error
    return copy


def after_every_timestep(model, x):
    """Returns the outputs after every timestep of x [n, timesteps, inputs]: [n, timesteps, 10].

    The model, one `for_any_length`, reads the first timestep alone, then the first two, and so on.
    If it reads only forwards, these are its outputs along the way. A bidirectional model, or one
    that averages over the timesteps, answers as if the sequence ended there.
    """
    lengths = range(1, x.shape[1] + 1)
    return np.stack([model.predict_on_batch(x[:, :length]) for length in lengths], axis=1)


# brightness and ink, all [height, width]


def brightness_of(picture):
    """Returns a Pillow image's brightness: float32, 0 to 255, the longer side 300 to 600 pixels."""
    picture = ImageOps.exif_transpose(picture)  # a phone stores how it was held
    if picture.mode[0] in "IF":  # integers or floats of any range, some perhaps infinite or NaN
        values = np.nan_to_num(np.asarray(picture, np.float64), posinf=0, neginf=0)
        values = (values - values.min()) / max(np.ptp(values), 1e-9)
        picture = Image.fromarray(np.uint8(255 * values))
    picture = picture.convert("RGBA")
    scale = np.clip(max(picture.size), 300, 600) / max(picture.size)
    size = [max(1, round(scale * side)) for side in picture.size]
    picture = picture.resize(size, reducing_gap=3)
    brightness, opaque = np.asarray(picture.convert("L")), np.asarray(picture.getchannel("A")) / 255
    # If the picture is mostly opaque, its transparent part becomes more of the same paper.
    # Otherwise only the digit was painted: the background becomes black or white, unlike its ink.
    mean = np.average(brightness, weights=opaque + 1e-9)
    background = mean if opaque.mean() > 0.5 else 255 * (mean < 128)
    flat = np.float32(background + opaque * (brightness - background))
    return ndimage.uniform_filter(flat, 3)  # smooths noise


def filled(brightness):
    """Returns the brightness with dark areas filled, unless they lead out of the picture.

    An area fills as if by water, up to the lowest way out to the picture's edge. Dark pixels at the
    edge are a way out if they cover 0.8 of a side, as a desk does. The ends of a ruled line, or of
    a closely cropped digit, are not.
    """
    ground = brightness[::2, ::2]  # a quarter of the pixels, for speed
    water = np.full_like(ground, 255)
    for level, edge in [(water, ground), (water.T, ground.T)]:
        for side in (0, -1):
            way_out = ndimage.grey_closing(edge[side], round(0.8 * edge[side].size) + 1)
            level[side] = np.minimum(level[side], way_out)
    water = morphology.reconstruction(water, ground, "erosion", footprint=morphology.disk(1))
    height, width = brightness.shape
    water = water.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.maximum(ndimage.minimum_filter(water, 3), brightness)  # the filter spares sharp edges


def regions_of(labels):
    """Returns the connected regions of a labelled image (0 is background), the longest first.

    They are scikit-image's region properties. Specks, below 1/10,000 of the image, are dropped.
    """
    regions = measure.regionprops(measure.label(labels), labels)
    return sorted([region for region in regions if region.area > labels.size / 10000],
                  key=size_of, reverse=True)


def size_of(region):
    """Returns the longer side of a region's bounding box."""
    return max(region.image.shape)


def stroke_width(region):
    """Returns a region's mean stroke width: its area divided by half of its perimeter."""
    return 2 * region.area / max(region.perimeter, 1)


def mask_of(regions, shape, reach=0):
    """Returns a mask, bool of this shape, of the regions and the pixels within reach of them."""
    mask = np.zeros(shape, bool)
    for region in regions:
        mask[region.slice] |= region.image
    return morphology.isotropic_dilation(mask, reach) if reach else mask


def edge_fraction(region, shape):
    """Returns the fraction of a region's perimeter on the edge of a picture of this shape."""
    sides = np.array(region.bbox) == [0, 0, *shape]
    lines = region.image[0], region.image[:, 0], region.image[-1], region.image[:, -1]
    ink = sum(line.sum() for side, line in zip(sides, lines, strict=True) if side)
    return ink / max(region.perimeter, 1)


def is_shadow(region, gradient):
    """Returns True if the ink fades slowly along at least a quarter of a region's outline."""
    outline = region.image ^ ndimage.binary_erosion(region.image)
    return np.percentile(gradient[region.slice][outline], 25) < 3 / size_of(region)


def ink_on(brightness):
    """Returns the dark ink, 0 to 1, without shadows and marks along the edge, and its contrast.

    The contrast is 0 if nothing stands out from the noise.
    """
    difference = filled(brightness) - brightness
    pairs = difference.ravel()[10:] - difference.ravel()[:-10]  # pixels ten apart
    # The noise's standard deviation, by the quarter of the pairs that are most alike: mere paper.
    noise = np.percentile(abs(pairs), 25) / 0.45
    while difference.max() > max(10, 8 * noise):
        contrast = np.median(difference[difference > difference.max() / 2])
        ink = np.minimum(difference / contrast, 1)
        gradient = ndimage.gaussian_gradient_magnitude(ink, 1)
        stray = [region for region in regions_of(np.uint8(ink > 0.5))
                 if edge_fraction(region, ink.shape) > 1 / 3 or is_shadow(region, gradient)]
        if not stray:
            return ink, contrast
        difference[mask_of(stray, ink.shape, reach=4)] = 0
    return difference, 0


# the digit


def find_digit(picture):
    """Returns the ink of the digit in a Pillow image: float32 [height, width], 0 to 1."""
    brightness = brightness_of(picture)
    found = [ink_on(brightness), ink_on(255 - brightness)]
    strongest = max(contrast for _, contrast in found)
    if not strongest:
        raise Unreadable("shows no digit: nothing stands out from the background")
    return digit_of(*[ink for ink, contrast in found if contrast >= strongest / 2])


def may_be_digit(region):
    """Returns True if a region has strokes: it is no blot, no flat bar and no net, as of cloth."""
    height, width = region.image.shape
    return (stroke_width(region) < 0.4 * size_of(region) and width < 2 * height
            and region.euler_number > -50)  # 1 minus the number of holes


def encloses(outer, inner):
    """Returns True if the inner region lies in a hole of the outer one."""
    row, column = np.subtract(inner.coords[0], outer.bbox[:2])
    height, width = outer.image.shape
    return 0 <= row < height and 0 <= column < width and outer.image_filled[row, column]


def thickness_of(region):
    """Returns a region's thickness where it is thickest."""
    return 2 * ndimage.distance_transform_edt(np.pad(region.image, 1)).max()


def is_paper(outer, inner):
    """Returns True if the inner region is a stroke on the outer one, a sheet.

    The longer and finer the stroke, the narrower the sheet may be.
    """
    thickness = thickness_of(outer) / size_of(outer)
    return thickness ** 2 * size_of(inner) / stroke_width(inner) > 0.45


def is_outline(outer, inner):
    """Returns True if the outer region only outlines a stroke, the inner one, unlike a 0's hole."""
    thickness = thickness_of(inner)
    bent = inner.area_filled < 0.8 * inner.area_convex or inner.area_filled > 1.2 * inner.area
    return (size_of(inner) > 0.7 * size_of(outer) and thickness > thickness_of(outer)
            and thickness < size_of(inner) * (0.3 if bent else 0.18))


def without_holes(regions):
    """Returns the regions without holes in others, paper under others and outlines of others."""
    holes, under, outlined = set(), set(), set()
    for outer in [region for region in regions if region.area_filled > region.area]:
        for inner in regions:
            if (inner.intensity_max == outer.intensity_max or outer.label in under
                    or inner.label in holes or not encloses(outer, inner)):
                continue
            if is_outline(outer, inner):
                outlined.add(inner.label)
                under.add(outer.label)
            elif outer.label not in outlined and is_paper(outer, inner):
                under.add(outer.label)
            else:
                holes.add(inner.label)
    return [region for region in regions if region.label not in holes | under]


def without_frames(regions, shape):
    """Returns the regions of a picture of this shape without frames around others.

    Boxes, circles, brackets and pairs of bars are frames, closed or not, if they are longer than
    what they surround.
    """
    frames = set()
    for region in regions:
        around = [each for each in regions
                  if size_of(each) > 1.2 * size_of(region) and each.label not in frames]
        if (around and may_be_digit(region) and not edge_fraction(region, shape)
                and size_of(region) > size_of(around[0]) / 4):
            mask = mask_of(around, shape)
            hull = morphology.convex_hull_image(mask)
            inside = hull[region.slice][region.image].mean() > 0.9
            near = mask[mask_of([region], shape, reach=4)].any()  # as the hole of a 6 is
            if inside and not near:
                frames.update(each.label for each in around)
    return [region for region in regions if region.label not in frames]


def digit_of(*inks):
    """Returns the ink of the only digit, its strokes at least as thick as MNIST's.

    inks are [height, width], 0 to 1: the dark ink, the light ink, or both in this order.
    """
    shape = inks[0].shape
    labels = np.select([ink > 0.5 for ink in inks], [1, 2][:len(inks)])
    marks = without_frames(without_holes(regions_of(labels)), shape)
    candidates = [mark for mark in marks if may_be_digit(mark)]
    if not candidates:
        raise Unreadable("shows no digit: no mark in it is made of strokes")
    # the largest that is not cut off by the edge, if there is one
    digit = min(candidates, key=lambda mark: edge_fraction(mark, shape) > 0)
    size, width = size_of(digit), stroke_width(digit)
    top, left, bottom, right = digit.bbox
    margin = size // 8  # detached strokes of the digit are nearer than another digit
    near = np.s_[max(0, top - margin):bottom + margin, max(0, left - margin):right + margin]
    touching = mask_of([digit], shape, reach=4)  # such as a glare that the strokes divide
    own, others = [], []
    for mark in marks:
        same_ink = mark.intensity_max == digit.intensity_max
        alike = width / 2 < stroke_width(mark) < 2 * width
        cut_off = edge_fraction(mark, shape) > 0
        if same_ink and mask_of([mark], shape)[near].any() and (alike or not cut_off):
            own.append(mark)
        elif not cut_off and not touching[mark.slice][mark.image].any():
            if (size_of(mark) > size / 3 and mark.area > digit.area / 20
                    and (alike or may_be_digit(mark))):
                raise Unreadable("shows several marks that may be the digit: leave only one")
            others.append(mark)
    if others:
        noun = "mark" if len(others) == 1 else "marks"
        warnings.warn(f"Ignored {len(others)} other {noun} in the picture.", IgnoredMarks,
                      stacklevel=2)
    ink = inks[int(digit.intensity_max) - 1]
    ink = np.where(mask_of(own, shape, reach=2), ink, 0)  # with their grey edges
    return with_thick_strokes(ink.astype(np.float32))


def with_thick_strokes(ink):
    """Returns the ink, thickened to a stroke width of MNIST's if it is finer: two of its pixels."""
    digit, = measure.regionprops(np.uint8(ink > 0.5))
    pixel, width = size_of(digit) / 20, stroke_width(digit)
    if width > 1.2 * pixel:
        return ink
    return np.float32(morphology.isotropic_dilation(ink > 0.5, pixel - width / 2))


def as_in_mnist(ink):
    """Returns a digit in the form that MNIST's makers gave theirs: float32 [28, 28], 0 to 1.

    They scaled it into 20 by 20 pixels and moved its centre of mass to the centre of 28 by 28.
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
    """Returns the digit in a picture's file as in MNIST: float32 [28, 28], 0 to 1."""
    try:
        with Image.open(path) as picture:
            return as_in_mnist(find_digit(picture))
    except Unreadable as error:
        raise Unreadable(f"{path} {error}.") from error
    except Exception as error:  # each of Pillow's decoders raises its own
        raise Unreadable(f"Cannot read {path} as a picture: {error}.") from error


def main():
    if len(sys.argv) != 2:
        sys.exit(f"Expected one picture, got {len(sys.argv) - 1}: "
                 "run python docs/read_digit.py digit.png")
    try:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("ignore")  # what libraries say to programmers
            warnings.simplefilter("always", IgnoredMarks)
            image = read_picture(sys.argv[1])
        model = load_model()
    except Unreadable as error:
        sys.exit(str(error))
    probabilities = model.predict_on_batch(sequence_of(image))[0]
    print(f"{probabilities.argmax()}, with probability {probabilities.max():.2f}")
    for note in notes:
        print(note.message)


if __name__ == "__main__":
    main()
