"""Where does the network look? Four ways say it; what each points at is covered: who is right?

    python tests/deletion.py                      # the networks in outputs/, on four data sets
    python tests/deletion.py --datasets mnist fashion_mnist         # some of them
    python tests/deletion.py --datasets cifar10 cifar10 --models a/model.keras b/model.keras
    python tests/deletion.py --datasets mnist --square 9 --stride 3     # occlusion's square
    python tests/deletion.py --earlier-maps     # finer maps for the two ways that take gradients
    python tests/deletion.py --controls         # two more ways that ask no network

Deletion: in each of 500 test images the fifth of the pixels that glows most is covered with the
image's mean colour. If the network really looks there, the probability of its answer falls far.
The four ways: a square at random (chance, which every way has to beat); Grad-CAM (Selvaraju et al.,
2017); gradient times map (HiResCAM; Draelos and Carin, 2020), both on the maps of the last block;
and occlusion (Zeiler and Fergus, 2014), by the function that draws where_it_looks.png. Occlusion
has an advantage: it covers with the same colour as the test.

Prints a table in markdown: how far the probability falls (0.30: from 0.90 to 0.60), as the mean
over the images with its 95 % interval, and the time for each image (median: other programs disturb
it less). The last run of each kind is kept in outputs/benchmark/deletion.json. The networks come
from runs of the script before.
"""
import argparse
import functools
import os
import pathlib
import sys
import time

import numpy as np
import pandas as pd
from ablation import RESULTS, ROOT, keep, print_table

sys.path.insert(0, str(ROOT))
import image_recognition_cnn as script  # noqa: E402  (found only with the line above)
from image_recognition_cnn import keras, tf  # noqa: E402

SHARE = 0.2  # of the pixels are covered
WAYS = ["random square", "Grad-CAM", "HiResCAM", "occlusion"]
CONTROLS = ["square in the middle", "scattered pixels"]


# %% The four ways. Each returns a heat (height, width) float: the hotter, the more it matters.
# image: (height, width, channels) uint8.
def random_square(random, image, class_index):
    """Return a heat that glows in a square at a random place; it asks no network."""
    height, width, _ = image.shape
    half = np.sqrt(SHARE * height * width) / 2  # half a side of the square that will be covered
    row = random.uniform(min(half, height / 2), max(height - half, height / 2))
    column = random.uniform(min(half, width / 2), max(width - half, width / 2))
    row_distance = np.abs(np.arange(height) + 0.5 - row)  # 0.5: the middle of a pixel
    column_distance = np.abs(np.arange(width) + 0.5 - column)
    return -np.maximum(row_distance[:, np.newaxis], column_distance)  # equal ones form a square


def middle_square(image, class_index):
    """Return a heat that glows in a square in the middle: there the thing in most images is."""
    height, width, _ = image.shape
    row_distance = np.abs(np.arange(height) - (height - 1) / 2)
    column_distance = np.abs(np.arange(width) - (width - 1) / 2)
    return -np.maximum(row_distance[:, np.newaxis], column_distance)


def scattered_pixels(random, image, class_index):
    """Return a heat without any order."""
    return random.random(image.shape[:2])


def grad_cam(parts, image, class_index):
    """Return the sum of the maps, each with its mean gradient as its weight.

    The authors cut off what is below 0. Here it stays, as only the order counts.
    """
    maps, gradients = maps_with_gradients(parts, image, class_index)
    weights = gradients.mean(axis=(0, 1))  # one for each map
    return enlarge(maps @ weights, parts["step"], image)


def hires_cam(parts, image, class_index):
    """Return the sum of the maps, each place with its own gradient as its weight."""
    maps, gradients = maps_with_gradients(parts, image, class_index)
    return enlarge((maps * gradients).sum(axis=2), parts["step"], image)


def maps_with_gradients(parts, image, class_index):
    """Return an image's maps, and how the class's sum before softmax grows with each number.

    parts: from split_network. Both returned: (rows, columns, number of maps) float32.
    """
    maps, gradients = compiled_gradients(
        parts["front"], parts["back"], tf.constant(image[np.newaxis]), tf.constant(class_index))
    return maps[0].numpy().astype("float32"), gradients[0].numpy().astype("float32")


@tf.function  # compiled once for each network: ten times as fast
def compiled_gradients(front, back, images, class_index):
    """Return the maps of images (1, height, width, channels), and the gradients at them."""
    maps = front(images, training=False)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        sums = back(maps, training=False)  # (1, number of classes)
        answer = sums[0, class_index]
    return maps, tape.gradient(answer, maps)


def enlarge(heat, step, image):
    """Bring a heat (rows, columns) to the image's size; step: pixels from one place to the next.

    The first place belongs to the first pixels. The last ones may have none, as pooling leaves out
    an odd last row: they get what their neighbours have.
    """
    rows, columns = heat.shape
    large = tf.image.resize(heat[..., np.newaxis], (rows * step, columns * step)).numpy()[..., 0]
    below = image.shape[0] - rows * step
    beside = image.shape[1] - columns * step
    return np.pad(large, ((0, below), (0, beside)), mode="edge")


def split_network(model, earlier_maps=False):
    """Return the network in two parts: front, from pixels to maps; back, from these to the sums.

    The maps are those of the last block or, if earlier_maps is set, of the block before it. The
    back ends before softmax, as in both papers: there a gradient says what speaks for the class,
    not what speaks against the others. The parts share their layers with the model.
    Returns {"front": model, "back": model, "step": pixels from one place of a map to the next}.
    """
    names = [layer.name for layer in model.layers]
    blocks = [name for name in names if name.startswith("block_")]
    if not blocks:
        raise SystemExit("deletion.py: this network has no layers block_1, block_2 ...: take one "
                         "that was trained with --model cnn.")
    name = blocks[-1]
    if earlier_maps and len(blocks) > 1:
        name = blocks[-2]
    cut = names.index(name) + 1
    front = keras.Sequential([keras.Input(model.input_shape[1:]), *model.layers[:cut]])
    last = model.layers[-1]
    # The same layer without its softmax:
    sums = keras.layers.Dense(last.units, dtype="float32", name="sums")
    back = keras.Sequential([keras.Input(front.output_shape[1:]), *model.layers[cut:-1], sums])
    sums.set_weights(last.get_weights())
    _, step, _ = script.receptive_field(model, name)
    return {"front": front, "back": back, "step": step}


# %% Deletion
def squares_of_the_script(image_shape):
    """Return the square and the stride that draw_where_it_looks takes, in pixels."""
    square = max(2, min(image_shape[:2]) // 4)
    return square, max(1, square // 2)


def cover_hottest(image, heat, random):
    """Return a copy of the image in which the hottest fifth of the pixels has the mean colour."""
    luck = random.random(heat.size)  # decides between pixels that are equally hot
    order = np.lexsort((luck, heat.ravel()))  # by heat, then by luck
    hottest = order[-round(SHARE * heat.size):]
    rows, columns = np.unravel_index(hottest, heat.shape)
    covered = image.copy()
    covered[rows, columns] = image.mean(axis=(0, 1))  # as occlusion_map does it
    return covered


def ways_to_look(model, square, stride, earlier_maps, controls, random):
    """Return a function for each way, by name: from image and class_index to a heat."""
    parts = split_network(model, earlier_maps)
    functions = [
        functools.partial(random_square, random),
        functools.partial(grad_cam, parts),
        functools.partial(hires_cam, parts),
        functools.partial(script.occlusion_map, model, square=square, stride=stride),
    ]
    ways = dict(zip(WAYS, functions))
    if controls:
        more = [middle_square, functools.partial(scattered_pixels, random)]
        ways.update(zip(CONTROLS, more))
    return ways


def measure(model, images, ways, random):
    """Return how far the answer's probability falls, and the seconds for each image.

    images: (number, height, width, channels) uint8. ways: from ways_to_look. Two tables (pandas
    DataFrame) with one row for each image and one column for each way.
    """
    probabilities = script.predict(model, images)
    answers = probabilities.argmax(axis=1)
    numbers = np.arange(len(images))
    falls = pd.DataFrame()
    seconds = pd.DataFrame()
    for way, function in ways.items():
        function(images[0], answers[0])  # Keras prepares itself at the first call: not counted
        covered = []
        times = []
        for image, answer in zip(images, answers):
            start = time.perf_counter()
            heat = function(image, answer)
            times.append(time.perf_counter() - start)
            covered.append(cover_hottest(image, heat, random))
        after = script.predict(model, np.array(covered))
        fall = probabilities[numbers, answers] - after[numbers, answers]
        falls[way] = fall.astype("float64")
        seconds[way] = times
    return falls, seconds


def summarize(falls, seconds):
    """Return the means over the images with half their 95 % intervals, all by way.

    lead: how much farther the probability falls with occlusion than with the best of the others;
    its interval is that of the differences within the same image.
    """
    means = falls.mean()
    best = means.drop("occlusion").idxmax()
    leads = falls["occlusion"] - falls[best]
    return {
        "fall": means.round(4).to_dict(),
        "plus_minus": (1.96 * falls.sem()).round(4).to_dict(),
        "next_best": best,
        "lead": round(float(leads.mean()), 4),
        "lead_plus_minus": round(float(1.96 * leads.sem()), 4),
        "seconds": seconds.median().round(6).to_dict(),
    }


def measure_network(dataset, path, given):
    """Return the name of a row and its record: one network on images of its data set.

    dataset: as for the script. path: of its model.keras. given: the flags.
    """
    model = keras.models.load_model(path)
    script.IMAGE_SIZE = model.input_shape[1]  # pictures from a folder come in this size
    script.DATASET = dataset
    script.read_settings()
    _, _, (x_test, y_test), _, _ = script.load_data()
    random = np.random.default_rng(given.seed)
    chosen = random.permutation(len(x_test))[:given.images]
    images = x_test[chosen]
    square, stride = squares_of_the_script(images.shape[1:])
    square = given.square or square
    stride = given.stride or stride

    ways = ways_to_look(model, square, stride, given.earlier_maps, given.controls, random)
    falls, seconds = measure(model, images, ways, random)
    accuracy = np.mean(script.predict(model, images).argmax(axis=1) == y_test[chosen])
    record = {
        "dataset": script.title_of_dataset(),
        "weights": model.count_params(),
        "images": len(images),
        "seed": given.seed,
        "accuracy": round(float(accuracy), 4),
        "square": square,
        "stride": stride,
        "earlier_maps": given.earlier_maps,
        **summarize(falls, seconds),
    }
    name = (f"{record['dataset']}, {record['weights']:,} weights, {len(images)} images, "
            f"seed {given.seed}, square {square}, stride {stride}")
    if given.earlier_maps:
        name += ", earlier maps"
    return name, record


def table_line(record):
    """Return the cells of one network: its name, the falls, the lead, the square, the seconds."""
    cells = [f"{record['dataset']} ({record['weights']:,} weights, {record['images']} images)"]
    for way in record["fall"]:
        cells.append(f"{record['fall'][way]:.2f} ± {record['plus_minus'][way]:.2f}")
    lead = f"{record['lead']:+.2f} ± {record['lead_plus_minus']:.2f}"
    cells.append(f"{lead} ({record['next_best']})")
    cells.append(f"{record['square']}, {record['stride']}")
    for way in WAYS[1:]:
        cells.append(f"{record['seconds'][way]:.3f}")
    return cells


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", help="as for the script's --dataset",
                        default=["digits", "mnist", "fashion_mnist", "cifar10"])
    parser.add_argument("--models", nargs="+", type=pathlib.Path, metavar="FILE",
                        help="one for each data set; outputs/NAME/model.keras if not given")
    parser.add_argument("--images", type=int, default=500, help="test images of each data set")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images and squares")
    parser.add_argument("--square", type=int, help="occlusion's; the script's own if not given")
    parser.add_argument("--stride", type=int, help="occlusion's; the script's own if not given")
    parser.add_argument("--earlier-maps", action="store_true",
                        help="gradients on the maps of the last block but one, if there is one")
    parser.add_argument("--controls", action="store_true",
                        help=f"also: {', '.join(CONTROLS)}")
    given = parser.parse_args()
    models = given.models
    if models is None:
        names = [pathlib.Path(dataset).stem for dataset in given.datasets]
        models = [ROOT / "outputs" / name / "model.keras" for name in names]
    if len(models) != len(given.datasets):
        parser.error("--models: give one for each of --datasets, in the same order.")
    for dataset, path in zip(given.datasets, models):
        if not path.is_file():
            parser.error(f"there is no {os.path.relpath(path)}. Make it with: "
                         f"python image_recognition_cnn.py --dataset {dataset}")

    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = []
    for dataset, path in zip(given.datasets, models):
        print(f"{dataset}, {os.path.relpath(path)}", flush=True)
        name, record = measure_network(dataset, path, given)
        keep(RESULTS / "deletion.json", name, record)
        lines.append(table_line(record))
    titles = ["network", *record["fall"]]
    titles += ["occlusion ahead of the next best by", "its square, stride"]
    titles += [f"seconds per image: {WAYS[1]}", *WAYS[2:]]
    print_table(titles, lines)


if __name__ == "__main__":
    main()
