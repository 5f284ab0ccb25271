"""Chapters 1 to 6, by what a reader would miss: data, model, training, test, pictures."""

import os
import pathlib

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

import image_recognition_cnn as script
from helpers import assert_drawn, one_sentence


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype("uint8")


def convolutions(model):
    return [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]


def test_digits_are_split_by_class_without_an_image_twice_and_whatever_the_seed(settings):
    loaded = []
    for seed in (0, 1):
        keras.utils.set_random_seed(seed)
        loaded.append(script.load_data(settings(SEED=seed))[:3])
    digits = load_digits()
    pairs = []
    for (x, y), (x_again, y_again), number in zip(*loaded, [1294, 144, 359]):
        assert x.shape == (number, 8, 8, 1) and x.dtype == "uint8" and y.shape == (number,)
        assert (x.min(), x.max()) == (0, 255) and (x == x_again).all() and (y == y_again).all()
        assert np.ptp(np.bincount(y) / number - np.bincount(digits.target) / 1797) < 0.01
        pairs += [(image.tobytes(), label) for image, label in zip(x, y)]
    images = (digits.images * 255 / 16).round().astype("uint8")
    assert sorted(pairs) == sorted((x.tobytes(), y) for x, y in zip(images, digits.target))


@pytest.mark.parametrize("name, form", [
    ("mnist", (28, 28)), ("fashion_mnist", (28, 28)), ("cifar10", (32, 32, 3))])
def test_keras_data_sets_get_channels_and_plain_labels(settings, monkeypatch, name, form):
    def made(number):
        labels = (np.arange(number) % 10).astype("uint8")
        return np.stack([np.full(form, 20 * label, "uint8") for label in labels]), labels[:, None]

    monkeypatch.setattr(getattr(keras.datasets, name), "load_data", lambda: (made(200), made(50)))
    found = script.load_data(settings(DATASET=name, VALIDATION_SPLIT=0.2))
    for (x, y), number in zip(found, [160, 40, 50]):
        assert x.shape == (number, *form[:2], 3 if name == "cifar10" else 1)
        assert y.shape == (number,) and y.dtype == int
        assert (x[:, 0, 0, 0] == 20 * y).all(), "an image has another's label"


@pytest.mark.parametrize("name, place", [
    ("mnist", "mnist.npz"), ("fashion_mnist", "fashion-mnist/train-labels-idx1-ubyte.gz"),
    ("cifar10", "cifar-10-batches-py-target_archive")])
def test_failed_download_says_where_a_copy_goes(run, capsys, name, place):
    copy = pathlib.Path(os.environ["KERAS_HOME"], "datasets", place)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(b"mine")  # Keras wants a file of its own, and may delete this one
    named = str(copy).replace("train-labels-idx1-ubyte", "*")
    with one_sentence(capsys, named, "KERAS_HOME", "--dataset digits"):
        run(DATASET=name)
    copy.unlink(missing_ok=True)


def test_default_model_layer_by_layer(settings):
    (x, _), (x_val, y_val), _, names = script.load_data(settings())
    keras.utils.set_random_seed(0)
    model = script.build_cnn(x, len(names), settings())
    assert [(type(layer).__name__, layer.output.shape[1:]) for layer in model.layers] == [
        ("RandomTranslation", (8, 8, 1)), ("Normalization", (8, 8, 1)), ("Conv2D", (7, 7, 8)),
        ("Conv2D", (7, 7, 64)), ("MaxPooling2D", (3, 3, 64)), ("BatchNormalization", (3, 3, 64)),
        ("ReLU", (3, 3, 64)), ("Conv2D", (3, 3, 64)), ("BatchNormalization", (3, 3, 64)),
        ("ReLU", (3, 3, 64)), ("Flatten", (576,)), ("Dense", (128,)), ("Dropout", (128,)),
        ("Dense", (10,))]
    normalized = np.asarray(model.layers[1](x))  # raw pixels go in
    assert abs(normalized.mean()) < 1e-3 and abs(normalized.std() - 1) < 1e-3
    answers, results = script.evaluate(model, x_val, y_val, x_val, y_val, names)
    assert answers.dtype == "float32" and np.allclose(answers.sum(axis=1), 1, atol=1e-5)
    assert results["test_loss"] == pytest.approx(np.log(10), abs=0.4), "untrained, it guesses"


def test_augmentation_changes_training_images_only(settings):
    x = noise(60, 16, 16, 3)
    model = script.build_cnn(x, 10, settings(SHIFT=3, MIRROR=True, FILTERS=[8]))
    shift, mirror = model.layers[:2]
    plain = keras.Sequential([keras.Input((16, 16, 3)), *model.layers[2:]])
    assert np.allclose(script.predict(model, x), script.predict(plain, x), atol=1e-6)
    ramp = np.tile(np.arange(16, dtype="float32")[:, None, None], (200, 1, 16, 3))
    moved = np.asarray(shift(ramp, training=True))[:, 8, 8, 0] - 8
    assert moved.min() == -3 and moved.max() == 3, "whole pixels, 3 at most"
    left = np.asarray(mirror(ramp.swapaxes(1, 2), training=True))[:, 0, 0, 0]
    assert 60 < (left == 15).sum() < 140 and set(left) == {0, 15}


def test_whitening_gives_uncorrelated_numbers_of_spread_1():
    random = np.random.default_rng(0)
    images = random.normal(size=(200, 1, 1, 1)) + 0.5 * random.normal(size=(200, 12, 12, 3))
    images[..., 2] += 3 * images[..., 0]  # much of what the channels say is said twice
    layer = script.whitening_layer(images.astype("float32"))
    answers = np.asarray(layer(images))
    assert answers.shape == (200, 11, 11, 24) and not layer.trainable
    numbers = answers[..., :12] - answers[..., 12:]  # ReLU parted them by sign
    assert np.allclose(np.cov(numbers.reshape(-1, 12), rowvar=False), np.eye(12), atol=0.05)


def test_identity_start_passes_the_maps_on(settings):
    model = script.build_cnn(noise(40, 8, 8, 1), 10, settings(FILTERS=[16]))
    _, first, second = convolutions(model)
    for layer, number in ((first, 8), (second, 16)):
        maps = np.random.default_rng(0).random((2, 5, 5, number)).astype("float32")
        assert np.allclose(np.asarray(layer(maps))[..., :number], maps, atol=1e-5)
    assert np.ptp(first.kernel.numpy()[..., 8:]) > 0, "the others stay random"


def test_early_pooling_saves_half_of_all_multiplications(settings):
    model = script.build_cnn(noise(50, 32, 32, 3), 10, settings(DATASET="cifar10"))
    early = 0
    late = 0  # if pooling came behind the second convolution of a block
    for number, layer in enumerate(convolutions(model)):
        early += np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:3])
        if number == 0 or number % 2 == 1:  # whitening, or the first convolution of a block
            places = np.prod(layer.output.shape[1:3])
        late += np.prod(layer.kernel.shape) * places
    assert 0.4 < early / late < 0.6
    maps = np.asarray(model.layers[-3](noise(2, 3, 3, 192)))  # DENSE_UNITS is 0: global pooling
    assert (maps == noise(2, 3, 3, 192).max(axis=(1, 2))).all()


@pytest.mark.parametrize("changes, words", [
    (dict(FILTERS=[8, 8, 8]), ["--filters [8, 8, 8]", "3x3 pixels", "fewer filters"]),
    (dict(SHIFT=8), ["--shift 8", "8x8 pixels"]),
    (dict(EPOCHS=1, LEARNING_RATE=10.0, WEIGHT_DECAY=100.0), ["NaN", "--learning-rate 1."])])
def test_what_does_not_fit_gets_one_sentence(run, no_pictures, capsys, changes, words):
    with one_sentence(capsys, *words):
        run(**{"FILTERS": [8], **changes})


def test_learning_rate_rises_over_a_fifth_and_ends_at_0_or_is_constant(settings):
    schedule = script.learning_rate_schedule(100, settings())
    rates = [float(schedule(step)) for step in range(101)]
    assert 0 < rates[0] < rates[10] < rates[20] == max(rates) == pytest.approx(0.004)
    assert rates[20] > rates[60] > rates[99] > rates[100] == pytest.approx(0, abs=1e-7)
    assert script.learning_rate_schedule(100, settings(SCHEDULE="constant")) == 0.004


def test_batches_are_full_in_training_and_each_label_stays_with_its_image(settings):
    images = np.arange(65, dtype="uint8").reshape(-1, 1, 1, 1)
    orders = set()
    for shuffled, sizes in [(True, [32, 32])] * 8 + [(False, [32, 32, 1])]:
        if not orders or not shuffled:
            served = script.batches(
                images, images.ravel() % 4, 4, settings(BATCH_SIZE=32), shuffled)
        x, y = zip(*served.as_numpy_iterator())
        assert [len(batch) for batch in x] == sizes, "one image spoils batch normalization"
        numbers = np.concatenate(x).ravel()
        assert (np.concatenate(y) == np.eye(4)[numbers % 4]).all(), "an image has another's label"
        orders.add(tuple(numbers))
    assert len(orders) == 9 and tuple(numbers) == tuple(range(65)), "new in each epoch"


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_weight_decay_takes_from_weights_but_not_from_offsets_and_scales(settings, name):
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 3), layers.Flatten(),
                              layers.BatchNormalization(), layers.Dense(2)])
    model.set_weights([np.ones(weight.shape) for weight in model.weights])
    optimizer = script.make_optimizer(0.1, settings(OPTIMIZER=name, WEIGHT_DECAY=0.5))
    optimizer.build(model.trainable_variables)
    optimizer.apply([0 * variable for variable in model.trainable_variables])
    for variable in model.trainable_variables:
        assert np.allclose(variable, 0.95 if variable.name == "kernel" else 1), variable.path


def test_evaluation_agrees_with_scikit_learn(tmp_path, capsys):
    x, y = noise(300, 8, 8, 1), np.arange(300) % 3  # no image is of the last class
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(0.01), layers.Flatten(),
                              layers.Dense(4, activation="softmax")])
    names = ["a", "b", "c", "猫"]
    probabilities, results = script.evaluate(model, x[:30], y[:30], x, y, names)
    answers = probabilities.argmax(axis=1)
    loss = log_loss(y, model.predict(x, verbose=0), labels=range(4))
    assert results["test_accuracy"] == accuracy_score(y, answers)
    assert results["validation_accuracy"] == accuracy_score(y[:30], answers[:30])
    assert results["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert results["mean_confidence"] == pytest.approx(probabilities.max(axis=1).mean())
    for sure in (results["test_accuracy"] + 0.06, results["test_accuracy"] + 0.04):
        results["mean_confidence"] = sure
        script.report(results, probabilities, y, names, tmp_path)
    assert capsys.readouterr().out.count("far apart") == 1
    assert results["confusion_matrix"] == confusion_matrix(y, answers, labels=range(4)).tolist()
    assert "猫" in (tmp_path / "classification_report.txt").read_text(encoding="utf-8")
    # Newcombe (1998), table I
    assert script.interval_of(np.int64(81), 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def texts():
    """All that is written in the picture that was drawn last."""
    return [text.get_text() for text in script.plt.gcf().findobj(script.plt.Text)]


def test_each_picture_of_colour_images_with_hard_names(settings, tmp_path):
    found = settings(DATASET="cifar10", FILTERS=[8, 8])
    x, y = noise(60, 16, 16, 3), np.array([0] * 40 + [1] * 15 + [2] * 5)
    model = script.build_cnn(x, 3, found)
    names = ["$^$", "a name of some\nforty letters,", "猫"]
    some = np.random.default_rng(0).dirichlet(np.ones(3), 60)
    script.draw_training_images(x, y, names, "T", tmp_path, found)
    assert {"40", "15", "5", "$^$"} <= set(texts()), "how many each class has"
    script.draw_learned_features(model, x, y, some, names, "T", tmp_path)
    assert any("whitening" in text for text in texts())
    script.draw_where_it_looks(model, x, y, some, names, "T", tmp_path)
    script.draw_predictions(x, y, some, names, "T", tmp_path)
    columns = ["accuracy", "loss", "val_accuracy", "val_loss", "learning_rate"]
    history = pd.DataFrame({"epoch": range(3), **dict.fromkeys(columns, [0.5, 0.9, 0.9])})
    script.draw_curves(history, "T", tmp_path)
    assert "best validation accuracy: epoch 2" in texts()
    assert len([assert_drawn(path) for path in tmp_path.glob("*.png")]) == 6


@pytest.mark.parametrize("number", [3, 31, 101])
def test_confusion_matrix_of_any_size(tmp_path, number):
    counts = 7 * np.eye(number, dtype=int)
    counts[0, 1] = 3
    counts[1, 1] = 9
    script.draw_confusion_matrix(counts, [f"class {i}" for i in range(number)], "T", tmp_path)
    assert_drawn(tmp_path / "confusion_matrix.png")
    axis = script.plt.gcf().axes[0]
    assert "class 0 taken for class 1, 3 of 10 times" in axis.get_title()
    assert (len(axis.texts) > 0) == (number <= 30), "numbers where there is room"
    assert axis.collections[0].get_array().reshape(number, number)[0, 1] == 0.3


def test_predictions_show_mistakes_last_and_the_surest_first_or_none(tmp_path):
    y = np.arange(60) % 3
    answers = np.where(np.arange(60) < 20, (y + 1) % 3, y)  # 20 mistakes
    probabilities = np.eye(3)[answers] * np.linspace(0.5, 0.999, 60)[:, None]
    chosen = script.choose_samples(y, probabilities)
    assert len(set(chosen)) == 30 and list(chosen >= 20) == [True] * 20 + [False] * 10
    script.draw_predictions(noise(60, 8, 8, 1), y, probabilities, list("abc"), "T", tmp_path)
    marks = [text for text in texts() if "\ntrue: " in text]
    assert marks[0] == "✗ c, 66%\ntrue: b" and len(marks) == 20
    assert marks == sorted(marks, key=lambda mark: -int(mark[5:7]))
    script.draw_predictions(noise(3, 8, 8, 1), y[:3], np.eye(3), list("abc"), "T", tmp_path)
    assert any("0 answers to 3 test images are wrong" in text for text in texts())
    script.draw_confusion_matrix(np.eye(3, dtype=int), list("abc"), "T", tmp_path)
    assert "No mistake" in script.plt.gcf().axes[0].get_title()


def test_occlusion_finds_the_part_that_decides():
    look = keras.Sequential([  # at the upper left corner: bright is class 1
        keras.Input((16, 16, 1)), layers.Cropping2D(((0, 12), (0, 12))),
        layers.GlobalAveragePooling2D(), layers.Dense(2, activation="softmax")])
    look.layers[-1].set_weights([np.array([[0, 0.015]]), np.array([1, 0])])
    image = np.zeros((16, 16, 1), "uint8")
    image[:4, :4] = 255
    for class_index, sign in ((1, 1), (0, -1)):
        heat = sign * script.occlusion_map(look, image, class_index)
        assert heat.shape == (16, 16) and heat[:4, :4].min() > 0.1 and heat[0, 0] == heat.max()
        assert np.allclose(heat[6:], 0) and np.allclose(heat[:, 6:], 0)
        assert heat.max() < 1, "a mean over squares, not their sum"


def test_strongest_parts_are_those_with_the_highest_answers():
    """Image i has the brightness 100 + i at the place where its answer is i + 2."""
    images = np.zeros((12, 8, 8, 1), "uint8")
    maps = np.ones((12, 4, 4))
    for i in range(12):
        row, column = i % 4, (i + 1) % 4
        maps[i, row, column] = i + 2
        images[i, 2 * row:2 * row + 2, 2 * column:2 * column + 2] = 100 + i
    parts = script.strongest_parts(maps, images, 4)  # with a white line right of and below each
    tiles = [parts[5 * (k // 3):5 * (k // 3) + 4, 5 * (k % 3):5 * (k % 3) + 4] for k in range(9)]
    assert [tile.max() for tile in tiles] == list(range(111, 102, -1))
    assert [(tile > 0).sum() for tile in tiles] == [4] * 9, "the whole bright place"
