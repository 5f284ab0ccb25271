"""Chapters 2 and 6: what is drawn is compared with the data, by Matplotlib's own figures."""

import keras
import numpy as np
import pandas as pd
import pytest
from matplotlib import colors
from sklearn.metrics import confusion_matrix

import image_recognition_cnn as script
from helpers import assert_drawn, noise


@pytest.fixture
def pictures(monkeypatch, settings):
    """The figures that are saved, by the name of their file; nothing is written."""
    saved = {}
    monkeypatch.setattr("matplotlib.figure.Figure.savefig",
                        lambda figure, path, **_: saved.update({path.name: figure}))
    return saved


def images_of(figure):
    """Return the image of each axis that has one, in the order of the axes."""
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]


def captions_of(figure):
    return [axis.get_title() for axis in figure.axes if axis.images]


def texts_of(figure):
    """All that is written in a figure, as one text."""
    return "\n".join(text.get_text() for text in figure.findobj(script.plt.Text))


def numbered_images(number, *shape):
    """Images of one shade each: image 7 is 7 everywhere."""
    return np.stack([np.full(shape, i, "uint8") for i in range(number)])


def shown_numbers(figure):
    """Which of the numbered images a figure shows, in its order."""
    found = [image.ravel()[0] for image in images_of(figure)]
    assert all((image == number).all() for image, number in zip(images_of(figure), found))
    return found


# What draws grids of images


def test_a_grid_shows_each_image_under_its_text_row_by_row():
    figure = script.plt.figure()
    images = noise(5, 6, 7, 1)
    axes = script.draw_grid(figure, images, list("abcde"), columns=3)
    assert figure.axes == axes and captions_of(figure) == list("abcde")
    for axis, image, place in zip(axes, images, range(5)):
        assert (np.asarray(axis.images[0].get_array()) == image[..., 0]).all()
        spec = axis.get_subplotspec()
        assert spec.get_geometry() == (2, 3, place, place)
        assert len(axis.get_xticks()) == len(axis.get_yticks()) == 0


def test_a_grid_shows_grey_from_black_to_white_and_colours_as_they_are():
    figure = script.plt.figure()
    dark = np.full((4, 4, 1), 20, "uint8")
    colour = noise(4, 4, 3)
    axes = script.draw_grid(figure, [dark, colour], ["dark", "colour"], columns=2)
    grey = axes[0].images[0]
    assert grey.get_clim() == (0, 255), "a dark image looks dark"
    assert grey.to_rgba(grey.get_array())[0, 0, :3] == pytest.approx(20 / 255, abs=0.01)
    assert (np.asarray(axes[1].images[0].get_array()) == colour).all()


# training_images.png


def draw_training_images(settings, pictures, tmp_path, x, y, names, **changes):
    script.draw_training_images(x, y, names, "T", tmp_path, settings(**changes))
    return pictures["training_images.png"]


def test_training_images_stand_under_their_class_in_turn(settings, pictures, tmp_path):
    y = np.repeat([0, 1, 2], [30, 20, 10])
    figure = draw_training_images(settings, pictures, tmp_path, numbered_images(60, 8, 8, 1), y,
                                  ["zero", "one", "two"])
    chosen = [0, 30, 50, 1, 31, 51, 2, 32, 52, 3, 33, 53]
    assert shown_numbers(figure)[:12] == chosen and len(set(shown_numbers(figure)[:24])) == 24
    assert captions_of(figure)[:24] == ["zero", "one", "two"] * 8
    assert "24 of 60 training images" in texts_of(figure)


def bars_of(figure):
    """Return {class: (length of its bar, number at its bar)}, from top to bottom."""
    [axis] = [axis for axis in figure.axes if axis.containers]
    names = [label.get_text() for label in axis.get_yticklabels()]
    lengths = [bar.get_width() for bar in axis.containers[0]]
    assert axis.get_xlim()[1] > 1.1 * max(lengths), "room for the numbers"
    return dict(zip(names, zip(lengths, [text.get_text() for text in axis.texts])))


def test_bars_count_the_images_of_each_class(settings, pictures, tmp_path):
    y = np.repeat([0, 1, 2], [10, 30, 20])
    figure = draw_training_images(settings, pictures, tmp_path, noise(60, 8, 8, 1), y, list("abc"))
    assert bars_of(figure) == {"a": (10, "10"), "b": (30, "30"), "c": (20, "20")}
    assert list(bars_of(figure)) == ["a", "b", "c"], "in the order of the classes"
    assert "how many images" in texts_of(figure)


def test_of_many_classes_the_forty_commonest_have_a_bar(settings, pictures, tmp_path):
    y = np.repeat(range(45), [1] * 5 + [2] * 40)
    figure = draw_training_images(settings, pictures, tmp_path, noise(85, 8, 8, 1), y,
                                  [str(i) for i in range(45)])
    assert list(bars_of(figure)) == [str(i) for i in range(5, 45)]
    assert "40 classes" in texts_of(figure)


def test_one_image_is_shown_as_the_network_gets_it(settings, pictures, tmp_path):
    keras.utils.set_random_seed(0)
    x = noise(30, 12, 12, 3)
    figure = draw_training_images(settings, pictures, tmp_path, x, np.arange(30) % 3, list("abc"),
                                  SHIFT=2, MIRROR=True)
    plain, *views = images_of(figure)[24:]
    assert (plain == x[0]).all() and len(views) == 8
    captions = captions_of(figure)[24:]
    assert captions == ["the image", *(f"epoch {i}" for i in range(1, 9))]
    found = set()
    for view in views:
        for mirrored in (True, False):
            whole = np.pad(x[0, :, ::-1] if mirrored else x[0], ((2, 2), (2, 2), (0, 0)),
                           mode="symmetric")
            found |= {(down, right, mirrored) for down in range(5) for right in range(5)
                      if (view == whole[down:down + 12, right:right + 12]).all()}
    assert len(found) >= 4, "the same image, moved and mirrored in several ways"
    assert {mirrored for _, _, mirrored in found} == {True, False}
    assert "what the network may get" in texts_of(figure)
    assert "SHIFT 2, MIRROR True)" in texts_of(figure)
    figure = draw_training_images(settings, pictures, tmp_path, x, np.arange(30) % 3, list("abc"),
                                  MODEL="vgg16")
    assert "before fine-tuning, images are only mirrored)" in texts_of(figure)


# accuracy_loss_curves.png


HISTORY = pd.DataFrame({
    "epoch": [0, 1, 2, 3], "accuracy": [0.5, 0.6, 0.7, 0.8], "val_accuracy": [0.4, 0.9, 0.9, 0.6],
    "loss": [2.0, 1.5, 1.2, 1.1], "val_loss": [2.2, 1.9, 1.7, 1.8],
    "learning_rate": [0.1, 0.3, 0.2, 0.0]})


def test_curves_are_those_of_the_history(pictures, tmp_path):
    script.draw_curves(HISTORY, "T", tmp_path)
    *both, rate = pictures["accuracy_loss_curves.png"].axes
    for axis, name in zip(both, ["accuracy", "loss"]):
        lines = {line.get_label(): line for line in axis.lines}
        for label, column in (("training images", name), ("validation images", "val_" + name)):
            assert list(lines[label].get_xdata()) == [1, 2, 3, 4]
            assert list(lines[label].get_ydata()) == list(HISTORY[column])
        assert name in axis.get_title().lower()
    [line] = rate.lines
    assert list(line.get_ydata()) == [0.1, 0.3, 0.2, 0] and list(line.get_xdata()) == [1, 2, 3, 4]
    assert "rate" in rate.get_title()


def test_the_curves_say_what_to_look_for(pictures, tmp_path):
    script.draw_curves(HISTORY, "T", tmp_path)
    figure = pictures["accuracy_loss_curves.png"]
    assert "T: how the training went" in texts_of(figure)
    assert "learns images by heart (overfitting)" in texts_of(figure)
    assert all("epoch" in axis.get_xlabel() for axis in figure.axes)


def test_the_scale_of_the_loss_is_logarithmic_and_has_plain_numbers(pictures, tmp_path):
    script.draw_curves(HISTORY, "T", tmp_path)
    loss = pictures["accuracy_loss_curves.png"].axes[1]
    assert loss.get_yscale() == "log"
    assert {0.1, 0.2, 0.5, 1, 2, 5} <= set(loss.yaxis.get_major_locator().tick_values(0.1, 5))
    assert loss.yaxis.get_major_formatter()(0.5, 0) == "0.5"
    assert loss.yaxis.get_minor_formatter()(0.3, 0) == "", "no number between these"


def test_curves_can_be_told_apart_without_colours(pictures, tmp_path):
    script.draw_curves(HISTORY, "T", tmp_path)
    for axis in pictures["accuracy_loss_curves.png"].axes[:2]:
        training, validation = axis.lines[:2]
        assert training.get_marker() != validation.get_marker()
        assert training.get_linestyle() != validation.get_linestyle()
        written = [text.get_text() for text in axis.get_legend().get_texts()]
        assert written[:2] == ["training images", "validation images"]


def test_a_star_marks_the_first_of_the_best_epochs(pictures, tmp_path):
    script.draw_curves(HISTORY, "T", tmp_path)
    [star] = [line for line in pictures["accuracy_loss_curves.png"].axes[0].lines
              if line.get_marker() == "*"]
    assert (star.get_xdata(), star.get_ydata()) == ([2], [0.9])
    assert star.get_label().endswith("epoch 2")


@pytest.mark.parametrize("epochs", [1, 4])
def test_epochs_are_whole_numbers(pictures, tmp_path, epochs):
    script.draw_curves(HISTORY[:epochs], "T", tmp_path)
    for axis in pictures["accuracy_loss_curves.png"].axes:
        assert axis.get_xlim() == (0.5, epochs + 0.5)
        ticks = [tick for tick in axis.get_xticks() if 0.5 <= tick <= epochs + 0.5]
        assert ticks and all(tick == round(tick) for tick in ticks)


# confusion_matrix.png


COUNTS = np.array([[6, 3, 0], [0, 1234, 1], [2, 0, 0]])


def drawn_matrix(pictures, tmp_path, counts, names):
    script.draw_confusion_matrix(counts.tolist(), names, "T", tmp_path)
    return pictures["confusion_matrix.png"].axes[0]


def test_the_matrix_has_a_row_for_each_true_class(pictures, tmp_path):
    axis = drawn_matrix(pictures, tmp_path, COUNTS, ["a", "b", "c"])
    found = np.zeros((3, 3), int)
    for text in axis.texts:
        column, row = np.floor(text.get_position()).astype(int)
        found[row, column] = int(text.get_text())
    assert (found == COUNTS).all() and len(axis.texts) == 5, "a zero is not written"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b", "c"]
    assert axis.get_ylim() == (3, 0), "the first class is at the top"
    assert "true" in axis.get_ylabel() and "predicted" in axis.get_xlabel()


def test_the_colours_are_shares_of_the_row(pictures, tmp_path):
    counts = np.array([[6, 2, 0], [0, 0, 0], [1, 0, 1]])  # no test image of the second class
    axis = drawn_matrix(pictures, tmp_path, counts, list("abc"))
    mesh = axis.collections[0]
    shares = mesh.get_array().reshape(3, 3).filled(-1)  # -1: left white
    assert shares.tolist() == [[0.75, 0.25, -1], [-1, -1, -1], [0.5, -1, 0.5]]
    assert mesh.get_clim() == (0, 1)
    assert not any(line.get_visible() for line in axis.get_xgridlines() + axis.get_ygridlines())
    bar = pictures["confusion_matrix.png"].axes[1]
    assert "share" in bar.get_ylabel() and bar.get_yticklabels()[-1].get_text() == "100%"


def test_the_title_names_the_commonest_mistake(pictures, tmp_path):
    title = drawn_matrix(pictures, tmp_path, COUNTS, ["a\nb", "c", "d"]).get_title()
    assert "99.52% of 1,246 test images" in title
    assert title.endswith("a b mistaken for c, 3 of 9 times")


def test_without_a_mistake_the_title_says_so(pictures, tmp_path):
    title = drawn_matrix(pictures, tmp_path, 4 * np.eye(3, dtype=int), list("abc")).get_title()
    assert "100.00% of 12" in title and title.endswith("No mistake")


def test_long_names_are_turned(pictures, tmp_path):
    for names, degrees in ((["abc", "b"], 0), (["abcd", "b"], 45)):
        axis = drawn_matrix(pictures, tmp_path, 2 * np.eye(2, dtype=int), names)
        assert {label.get_rotation() for label in axis.get_xticklabels()} == {degrees}
        assert {label.get_rotation() for label in axis.get_yticklabels()} == {0}


@pytest.mark.parametrize("number, inches", [(3, 6.5), (30, 21), (31, 21.6), (101, 22)])
def test_the_matrix_grows_with_the_classes_and_has_numbers_where_there_is_room(
        pictures, tmp_path, number, inches):
    names = [f"class {i}" for i in range(number)]
    axis = drawn_matrix(pictures, tmp_path, 7 * np.eye(number, dtype=int), names)
    assert pictures["confusion_matrix.png"].get_size_inches()[1] == pytest.approx(inches)
    assert len(axis.texts) == (number if number <= 30 else 0)
    letters = {label.get_fontsize() for label in axis.get_yticklabels()}
    assert letters == {min(11, 1000 / number)}, "of many classes, smaller ones"


# sample_predictions.png and confident_mistakes.png


@pytest.fixture
def answers():
    """Labels of 60 images and what a network says: the first 20 are wrong; each another percent."""
    y = np.arange(60) % 3
    said = np.where(np.arange(60) < 20, (y + 1) % 3, y)
    sure = np.random.default_rng(0).permutation(np.linspace(0.4001, 0.9991, 60))
    probabilities = np.full((60, 3), (1 - sure[:, None]) / 2)
    probabilities[np.arange(60), said] = sure
    return y, said, probabilities


def test_thirty_samples_end_with_ten_mistakes(answers):
    y, _, probabilities = answers
    chosen = script.choose_samples(y, probabilities)
    assert list(chosen) == [*range(20, 40), *range(10)]


def test_samples_of_sorted_images_are_of_all_classes():
    y = np.repeat([0, 1, 2], 30)  # as in a folder
    chosen = script.choose_samples(y, np.eye(3)[y])
    assert list(y[chosen]) == [0, 1, 2] * 10


def test_samples_of_few_mistakes_are_filled_up_with_right_answers():
    y = np.arange(60) % 3
    probabilities = np.eye(3)[y]
    probabilities[[5, 50]] = np.eye(3)[(y[[5, 50]] + 1) % 3]
    chosen = script.choose_samples(y, probabilities)
    assert len(chosen) == 30 and list(chosen[-2:]) == [5, 50] and 5 not in chosen[:-2]


def assert_answers_are_shown(figure, chosen, answers, names, shades=None):
    """The chosen images, each under its own caption, in a frame that says whether it is right.

    shades: of the images as they are shown, if these are not their numbers.
    """
    y, said, probabilities = answers
    assert shown_numbers(figure) == list(chosen if shades is None else shades)
    frames = [axis.spines["left"] for axis in figure.axes]
    for i, caption, frame in zip(chosen, captions_of(figure), frames):
        mark, colour = ("✓", "C0") if y[i] == said[i] else ("✗", "C3")
        percent = int(100 * probabilities[i].max())
        assert caption == f"{mark} {names[said[i]]}, {percent}%\ntrue: {names[y[i]]}"
        assert frame.get_edgecolor() == colors.to_rgba(colour)
        assert frame.get_linewidth() == (2 if y[i] == said[i] else 5), "not by colour alone"


def draw_predictions(tmp_path, answers, names=("a", "b", "c")):
    y, _, probabilities = answers
    x = numbered_images(len(y), 8, 8, 1)
    script.draw_predictions(x, y, probabilities, list(names), "T", tmp_path)


def test_sample_predictions_say_of_each_image_what_it_is(pictures, tmp_path, answers):
    draw_predictions(tmp_path, answers, ("ant", "bee", "cat"))
    chosen = script.choose_samples(answers[0], answers[2])
    assert_answers_are_shown(
        pictures["sample_predictions.png"], chosen, answers, ["ant", "bee", "cat"])


def test_confident_mistakes_are_all_mistakes_the_surest_first(pictures, tmp_path, answers):
    draw_predictions(tmp_path, answers)
    figure = pictures["confident_mistakes.png"]
    surest_first = sorted(range(20), key=lambda i: -answers[2][i].max())
    assert_answers_are_shown(figure, surest_first, answers, "abc")
    assert "wrong answers, 20 of 60 test images" in texts_of(figure)


def test_of_many_mistakes_thirty_are_shown(pictures, tmp_path, answers):
    y, said, probabilities = answers
    draw_predictions(tmp_path, ((said + 1) % 3, said, probabilities))
    assert len(shown_numbers(pictures["confident_mistakes.png"])) == 30
    assert "wrong answers, 60 of 60" in texts_of(pictures["confident_mistakes.png"])


def test_a_network_without_a_mistake_has_an_empty_picture_of_mistakes(pictures, tmp_path):
    y = np.arange(3)
    draw_predictions(tmp_path, (y, y, np.eye(3)))
    figure = pictures["confident_mistakes.png"]
    assert images_of(figure) == [] and "wrong answers, 0 of 3 test images" in texts_of(figure)
    assert len(images_of(pictures["sample_predictions.png"])) == 3


def test_only_what_is_certain_is_called_100_percent(pictures, tmp_path):
    probabilities = np.array([[0.9999, 0.0001], [0.0, 1.0]])
    draw_predictions(tmp_path, (np.arange(2), np.arange(2), probabilities))
    sure, certain = captions_of(pictures["sample_predictions.png"])
    assert "99%" in sure and "100%" in certain


# where_it_looks.png


def opacities(axis):
    """Return the opacity of each pixel of the yellow that lies on an image."""
    _, overlay = axis.images
    assert (np.asarray(overlay.get_array()) == (255, 215, 0)).all(), "yellow"
    return overlay.get_alpha()


def draw_heats(tmp_path, heats):
    number = len(heats)
    script.draw_answers(noise(number, 2, 2, 1), np.zeros(number, int), np.eye(2)[[0] * number],
                        ["a", "b"], "T", tmp_path / "heats.png", heats)


def test_yellow_lies_where_the_probability_falls(pictures, tmp_path):
    draw_heats(tmp_path, [np.array([[0.5, 0.25], [0, -0.3]]), np.array([[0.1, 0], [0, 0]])])
    first, second = map(opacities, pictures["heats.png"].axes)
    assert first == pytest.approx(np.array([[0.9, 0.5], [0, 0]])), "0.9: the image shines through"
    assert second == pytest.approx(np.array([[0.2, 0], [0, 0]])), "one scale for all images"


def test_falls_of_less_than_ten_points_are_pale(pictures, tmp_path):
    draw_heats(tmp_path, [np.array([[0.02, 0], [0, 0]])])
    [heat] = map(opacities, pictures["heats.png"].axes)
    assert heat == pytest.approx(np.array([[0.2, 0], [0, 0]]))


def test_without_heats_nothing_lies_on_the_images(pictures, tmp_path, answers):
    draw_predictions(tmp_path, answers)
    assert all(len(axis.images) == 1 for axis in pictures["sample_predictions.png"].axes)


def test_where_it_looks_covers_each_image_and_asks_for_the_answer(
        pictures, tmp_path, monkeypatch, answers):
    y, said, probabilities = answers
    asked = []

    def fall(_, image, class_index):
        """A map that tells which image and which class were asked for."""
        asked.append((image[0, 0, 0] // 4, class_index))
        return np.full((8, 8), (image[0, 0, 0] // 4 + 1) / 100)

    monkeypatch.setattr(script, "occlusion_map", fall)
    x = numbered_images(60, 8, 8, 3)
    x = 4 * x
    x[..., 2] += 3  # the mean of the channels is 1 more
    script.draw_where_it_looks(None, x, y, probabilities, list("abc"), "T", tmp_path)
    figure = pictures["where_it_looks.png"]
    chosen = script.choose_samples(y, probabilities)
    assert asked == [(i, said[i]) for i in chosen]
    darkened = [int(0.6 * (4 * i + 1)) for i in chosen]
    assert_answers_are_shown(figure, chosen, answers, "abc", darkened)
    for i, axis in zip(chosen, figure.axes):
        strength = (i + 1) / (max(chosen) + 1)
        assert opacities(axis) == pytest.approx(min(strength, 0.9))
    assert f"by {max(chosen) + 1} percentage points" in texts_of(figure)


@pytest.fixture
def looks_at_the_corner():
    """A network that looks at the upper left 4x4 pixels alone: bright is class 1."""
    model = keras.Sequential([
        keras.Input((16, 16, 1)), keras.layers.Cropping2D(((0, 12), (0, 12))),
        keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, activation="softmax")])
    model.layers[-1].set_weights([np.array([[0, 0.015]]), np.array([1, 0])])
    return model


def test_occlusion_finds_the_part_that_decides(looks_at_the_corner):
    image = np.zeros((16, 16, 1), "uint8")
    image[:4, :4] = 255
    for class_index, sign in ((1, 1), (0, -1)):
        heat = sign * script.occlusion_map(looks_at_the_corner, image, class_index)
        assert heat.shape == (16, 16) and heat[:4, :4].min() > 0.1 and heat[0, 0] == heat.max()
        assert np.allclose(heat[6:], 0) and np.allclose(heat[:, 6:], 0)
        assert heat.max() < 1, "a mean over squares, not their sum"


@pytest.mark.parametrize("height, width, side, step", [(16, 24, 4, 2), (5, 6, 2, 1)])
def test_squares_of_the_mean_colour_cover_each_pixel_equally_often(
        monkeypatch, height, width, side, step):
    asked = []

    def answer(_, images):
        asked.extend(images)
        return np.zeros((len(images), 2))

    monkeypatch.setattr(script, "predict", answer)
    image = noise(height, width, 3)
    script.occlusion_map(None, image, 0)
    plain, *covered = asked
    assert (plain == image).all()
    assert len(covered) == (height // step + 1) * (width // step + 1) or step == 1
    mean_colour = image.mean(axis=(0, 1)).astype("uint8")
    times = np.zeros((height, width))
    for one in covered:
        changed = (one != image).any(axis=2)
        rows, columns = np.nonzero(changed)
        assert (one[changed] == mean_colour).all() and changed.sum() <= side ** 2
        assert np.ptp(rows) < side and np.ptp(columns) < side
        times += changed
    assert (times == (side / step) ** 2).all()


# learned_features.png


@pytest.fixture
def features(settings, pictures, tmp_path):
    """The figure of a network with two blocks, and what was given to draw it."""
    keras.utils.set_random_seed(0)
    x, y = noise(40, 16, 16, 3), np.arange(40) % 3
    model = script.build_cnn(x, 3, settings(FILTERS=[8, 12]))
    probabilities = np.full((40, 3), 0.25)
    probabilities[np.arange(40), y] = 0.5
    probabilities[7, y[7]] = 0.8  # the surest of the right answers
    probabilities[9] = np.eye(3)[(y[9] + 1) % 3]  # surer, and wrong
    script.draw_learned_features(model, x, y, probabilities, ["ant", "bee", "cat"], "T", tmp_path)
    return pictures["learned_features.png"], model, x, y


def test_the_features_have_a_headline_with_the_data_set(features):
    figure, *_ = features
    assert figure.get_suptitle().startswith("T: ")


def test_the_features_begin_with_the_surest_right_answer_and_the_first_filters(features):
    figure, model, x, y = features
    image, *patterns = images_of(figure)[:13]
    assert (image == x[7]).all() and y[7] == 1 and "A test image of bee" in texts_of(figure)
    assert captions_of(figure)[:13] == ["image", *(f"filter {i}" for i in range(12))]
    kernel = model.get_layer("whitening").kernel.numpy()
    assert "whitening" in texts_of(figure)
    for number, pattern in enumerate(patterns):
        weights = kernel[..., number]
        grey = 127.5 * (1 + weights / np.abs(weights).max())  # middle grey: weight 0
        assert np.abs(pattern - grey).max() <= 1


def test_each_block_shows_the_maps_that_answer_most_and_the_parts_that_excite_them(features):
    figure, model, x, y = features
    tiles, captions = images_of(figure)[13:], captions_of(figure)[13:]
    others = x[script.spread_over_classes(y, 500)]
    for number, side in ((1, 11), (2, 16)):  # 5 * 16 // 7, and the whole image
        block = keras.Model(model.inputs, model.get_layer(f"block_{number}").output)
        maps = block.predict(x[[7]], verbose=0)[0]
        strongest = np.argsort(-maps.max(axis=(0, 1)))[:6]
        assert captions[:6] == [f"filter {i}" for i in strongest]
        assert len(set(captions[6:12])) == 1, "a caption for all parts"
        for i, tile in zip(strongest, tiles[:6]):
            assert np.allclose(tile, 255 * maps[..., i] / maps.max(), atol=1e-3)
        answers = block.predict(others, verbose=0)
        for i, tile in zip(strongest, tiles[6:12]):
            assert (tile == script.strongest_parts(answers[..., i], others, side)).all()
        assert f"{side} x {side} pixels" in texts_of(figure)
        tiles, captions = tiles[12:], captions[12:]
    assert tiles == []


@pytest.fixture
def parts_and_maps():
    """Image i has the brightness 100 + i at the place where its answer is i + 2."""
    images = np.zeros((12, 8, 12, 1), "uint8")
    maps = np.ones((12, 4, 4))
    for i in range(12):
        row, column = i % 4, (i + 1) % 4
        maps[i, row, column] = i + 2
        images[i, 2 * row:2 * row + 2, 3 * column:3 * column + 3] = 100 + i
    return images, maps


def tiles_of(parts, side, gap=1):
    """Return the nine tiles; what lies between them is grey."""
    step = side + gap
    assert parts.shape[:2] == (3 * step, 3 * step)
    rows, columns = np.divmod(np.arange(9), 3)
    tiles = [parts[step * row:step * row + side, step * column:step * column + side]
             for row, column in zip(rows, columns)]
    assert (parts[side::step] == 128).all() and (parts[:, side::step] == 128).all()
    return tiles


def test_strongest_parts_are_those_with_the_highest_answers(parts_and_maps):
    images, maps = parts_and_maps
    tiles = tiles_of(script.strongest_parts(maps, images, 4), 4)
    assert [tile.max() for tile in tiles] == list(range(111, 102, -1))
    assert [(tile > 0).sum() for tile in tiles] == [6] * 9, "the whole bright place"


def test_a_part_is_cut_around_the_middle_of_its_place():
    images = np.arange(400, dtype="uint16").reshape(1, 20, 20, 1)
    maps = np.zeros((1, 5, 5))
    maps[0, 2, 3] = 1  # pixels 8 to 11 down, 12 to 15 right
    for tile in tiles_of(script.strongest_parts(maps, images, 6), 6):
        assert (tile[..., 0] == images[0, 7:13, 11:17, 0]).all()


def test_fewer_than_nine_images_come_again(parts_and_maps):
    images, maps = parts_and_maps
    tiles = tiles_of(script.strongest_parts(maps[:4], images[:4], 4), 4)
    assert [tile.max() for tile in tiles] == [103, 102, 101, 100, 103, 102, 101, 100, 103]


def test_large_parts_have_a_wider_gap():
    tiles_of(script.strongest_parts(np.ones((9, 2, 2)), noise(9, 30, 30, 3), 24), 24, gap=2)


# All of them


def test_names_in_any_letters_can_be_drawn(settings, tmp_path):
    found = settings(DATASET="cifar10", FILTERS=[8])
    x, y = noise(60, 16, 16, 3), np.arange(60) % 3
    model = script.build_cnn(x, 3, found)
    names = ["$^$", "a name of some\nforty letters,", "猫"]
    some = np.random.default_rng(0).dirichlet(np.ones(3), 60)
    script.draw_training_images(x, y, names, "T", tmp_path, found)
    script.draw_learned_features(model, x, y, some, names, "T", tmp_path)
    script.draw_predictions(x, y, some, names, "T", tmp_path)
    matrix = confusion_matrix(y, some.argmax(axis=1))
    script.draw_confusion_matrix(matrix, names, "T", tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 5
    for path in tmp_path.glob("*.png"):
        assert_drawn(path)
