"""Chapters 1 to 5, by what a reader would miss: data, model, training, test."""

import argparse
import os
import pathlib
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.datasets import load_digits
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, log_loss

import image_recognition_cnn as script
from helpers import noise, one_sentence


def convolutions(model):
    return [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]


# Chapter 1: data


def test_digits_are_three_parts_of_the_same_mix_of_classes(settings):
    *parts, names = script.load_data(settings())
    assert names == list("0123456789")
    for (x, y), number in zip(parts, [1294, 144, 359]):
        assert x.shape == (number, 8, 8, 1) and x.dtype == "uint8" and y.shape == (number,)
        assert np.ptp(np.bincount(y) / number - np.bincount(load_digits().target) / 1797) < 0.01


def test_each_digit_is_in_one_part_once_with_its_label(settings):
    found = []
    for x, y in script.load_data(settings())[:3]:
        found += [(image.tobytes(), label) for image, label in zip(x, y)]
    digits = load_digits()
    images = (digits.images * 255 / 16).round().astype("uint8")  # from 0 to 255
    assert sorted(found) == sorted((x.tobytes(), y) for x, y in zip(images, digits.target))


def test_another_seed_splits_the_data_in_the_same_way(settings):
    loaded = []
    for seed in (0, 1):
        keras.utils.set_random_seed(seed)
        loaded.append(script.load_data(settings(SEED=seed))[:3])
    for (x, y), (x_again, y_again) in zip(*loaded):
        assert (x == x_again).all() and (y == y_again).all()


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


def test_a_dead_connection_does_not_hold_up_the_run_for_ever(monkeypatch):
    seconds = []
    monkeypatch.setattr("socket.setdefaulttimeout", seconds.append)
    assert script.from_keras(dict, "a place", one=1) == {"one": 1}
    assert seconds == [60]


def test_a_small_share_still_cuts_off_one_image_of_each_class():
    labels = np.repeat([0, 1, 2], 10)
    (rest, rest_labels), (cut, cut_labels) = script.split((np.arange(30), labels), share=0.01)
    assert sorted(cut_labels) == [0, 1, 2] and len(rest) == 27
    assert (labels[rest] == rest_labels).all() and (labels[cut] == cut_labels).all()


def test_a_share_that_leaves_too_little_is_one_sentence(capsys):
    with one_sentence(capsys, "0.9 of 8 images", "VALIDATION_SPLIT"):
        script.split((np.arange(8), np.repeat([0, 1, 2, 3], 2)), share=0.9)


# Chapter 2: a look at the data


def test_images_are_chosen_in_turn_from_each_class():
    labels = np.array([0, 0, 0, 2, 2, 1])
    assert list(script.spread_over_classes(labels, 9)) == [0, 5, 3, 1, 4, 2]
    assert list(script.spread_over_classes(labels, 4)) == [0, 5, 3, 1]


def test_small_images_are_means_of_the_pixels_from_0_to_1():
    images = noise(5, 16, 24, 3)
    means = images.reshape(5, 8, 2, 8, 3, 3).mean(axis=(2, 4)) / 255
    assert np.allclose(script.small_and_flat(images), means.reshape(5, -1), atol=1e-5)


def describe(capsys, x, y, x_val, y_val):
    """Return the lines that describe_data prints."""
    capsys.readouterr()
    script.describe_data(x, y, x_val, y_val, x_val[:7], ["a", "b"])
    return capsys.readouterr().out.splitlines()


def test_the_data_is_described_by_its_sizes_and_values(capsys):
    x = noise(60, 8, 8, 1).clip(3, 250)
    first, second, *_ = describe(capsys, x, np.arange(60) % 2, x[:20], np.arange(20) % 2)
    assert [word for word in first.split() if word.isdecimal()] == ["2", "60", "20", "7"]
    assert "(60, 8, 8, 1)" in second and "uint8" in second and "3 to 250" in second


def test_always_the_commonest_class_is_the_first_answer_without_a_network(capsys):
    y = np.array([1] * 40 + [0] * 20)
    y_val = np.array([1] * 4 + [0] * 16)
    *_, commonest, _ = describe(capsys, noise(60, 8, 8, 1), y, noise(20, 8, 8, 1), y_val)
    assert "20.0%" in commonest and "20 validation images" in commonest


def test_logistic_regression_on_up_to_3000_images_is_the_second(capsys):
    random = np.random.default_rng(0)
    y = random.integers(0, 2, 3400)
    x = (random.normal(115, 60, (3400, 8, 8, 1)) + 12 * y[:, None, None, None]).clip(0, 255)
    x = x.astype("uint8")
    *_, last = describe(capsys, x[:3100], y[:3100], x[3100:], y[3100:])
    some = script.spread_over_classes(y[:3100], 3000)
    regression = LogisticRegression(C=0.1, tol=0.01)
    regression.fit(x[some].reshape(3000, 64) / 255, y[some])
    share = regression.score(x[3100:].reshape(300, 64) / 255, y[3100:])
    assert 0.6 < share < 0.95, "neither nothing nor everything can be learned"
    assert " 3000 " in last and f"{share:.1%}" in last


def test_every_kth_image_is_as_many_as_fit():
    images = np.arange(1000).reshape(100, 5, 2, 1)
    assert (script.every_kth(images, 350) == images[::3]).all()
    assert (script.every_kth(images, 1000) == images).all()


# Chapter 3 (model)


def test_default_model_layer_by_layer(settings):
    x = script.load_data(settings())[0][0]
    model = script.build_cnn(x, 10, settings())
    assert model.name == "cnn"
    assert [(type(layer).__name__, layer.output.shape[1:]) for layer in model.layers] == [
        ("RandomTranslation", (8, 8, 1)), ("Normalization", (8, 8, 1)), ("Conv2D", (7, 7, 8)),
        ("Conv2D", (7, 7, 64)), ("MaxPooling2D", (3, 3, 64)), ("BatchNormalization", (3, 3, 64)),
        ("ReLU", (3, 3, 64)), ("Conv2D", (3, 3, 64)), ("BatchNormalization", (3, 3, 64)),
        ("ReLU", (3, 3, 64)), ("Flatten", (576,)), ("Dense", (128,)), ("Dropout", (128,)),
        ("Dense", (10,))]
    assert [layer.activation.__name__ for layer in model.layers if hasattr(layer, "activation")
            ] == ["relu", "linear", "linear", "relu", "softmax"]
    normalized = np.asarray(model.layers[1](x))  # raw pixels go in
    assert abs(normalized.mean()) < 1e-3 and abs(normalized.std() - 1) < 1e-3


def test_an_untrained_network_guesses(settings):
    (x, y), *_ = script.load_data(settings())
    keras.utils.set_random_seed(0)
    answers = script.predict(script.build_cnn(x, 10, settings()), x)
    assert answers.dtype == "float32" and np.allclose(answers.sum(axis=1), 1, atol=1e-5)
    assert log_loss(y, answers) == pytest.approx(np.log(10), abs=0.4)


def test_dropout_leaves_out_the_share_that_is_set(settings):
    for share in (0, 0.3):
        model = script.build_cnn(noise(20, 8, 8, 1), 10, settings(FILTERS=[8], DROPOUT=share))
        dropout = model.layers[-2]
        assert dropout.rate == share
        left_out = np.mean(np.asarray(dropout(np.ones((100, 128)), training=True)) == 0)
        assert left_out == pytest.approx(share, abs=0.03)


def test_without_whitening_the_blocks_see_the_pixels(settings):
    model = script.build_cnn(noise(20, 8, 8, 1), 10, settings(FILTERS=[8], WHITENING=False))
    assert "whitening" not in [layer.name for layer in model.layers]
    assert convolutions(model)[0].kernel.shape == (3, 3, 1, 8)


def test_batch_normalization_takes_the_place_of_the_bias(settings):
    for is_on in (True, False):
        found = settings(FILTERS=[8], BATCH_NORMALIZATION=is_on)
        model = script.build_cnn(noise(20, 8, 8, 1), 10, found)
        momenta = [layer.momentum for layer in model.layers
                   if isinstance(layer, layers.BatchNormalization)]
        assert momenta == ([0.6, 0.6] if is_on else [])
        assert [layer.use_bias for layer in convolutions(model)] == [False, not is_on, not is_on]


def test_without_a_hidden_layer_the_largest_number_of_each_map_stays(settings):
    model = script.build_cnn(noise(20, 8, 8, 1), 10, settings(FILTERS=[8], DENSE_UNITS=0))
    *_, last_map, pooling, _, _, answer = model.layers
    assert last_map.name == "block_1" and answer.kernel.shape == (8, 10)
    maps = noise(2, 3, 3, 8)
    assert (np.asarray(pooling(maps))[:, 0, 0] == maps.max(axis=(1, 2))).all()


def test_blocks_have_the_names_by_which_their_maps_are_found(settings):
    model = script.build_cnn(noise(20, 16, 16, 1), 10, settings(FILTERS=[4, 8]))
    named = {layer.name: layer for layer in model.layers}
    assert named["block_1"].output.shape[1:] == (7, 7, 4)
    assert named["block_2"].output.shape[1:] == (3, 3, 8)
    assert isinstance(named["block_2"], layers.ReLU)


def test_a_block_takes_maps_of_4x4_but_no_smaller_ones(settings, capsys):
    found = settings(FILTERS=[4, 4], WHITENING=False)
    model = script.build_cnn(noise(20, 8, 8, 1), 10, found)  # 8x8, 4x4, 2x2
    assert model.get_layer("block_2").output.shape[1:] == (2, 2, 4)
    found.FILTERS = [4, 4, 4]
    with one_sentence(capsys, "block_3", "[4, 4, 4]", "2x2 pixels", "fewer blocks"):
        script.build_cnn(noise(20, 8, 8, 1), 10, found)


def test_a_shift_as_wide_as_the_image_is_one_sentence(settings, capsys):
    with one_sentence(capsys, "--shift 8", "8x20 pixels"):
        script.build_cnn(noise(20, 8, 20, 1), 10, settings(SHIFT=8))


def test_only_a_sample_of_many_images_is_measured(settings, monkeypatch):
    measured = []
    whitening_layer = script.whitening_layer

    def whitening_of(images):
        measured.append(len(images))
        return whitening_layer(images)

    monkeypatch.setattr(layers.Normalization, "adapt", lambda _, x: measured.append(len(x)))
    monkeypatch.setattr(script, "whitening_layer", whitening_of)
    images = np.broadcast_to(noise(1, 40, 50, 1), (6000, 40, 50, 1))  # 12,000,000 numbers
    script.build_cnn(images, 2, settings(FILTERS=[4]))
    assert measured == [3000, 1500]  # half of them, and a quarter


def test_augmentation_is_for_training_only(settings):
    x = noise(60, 16, 16, 3)
    model = script.build_cnn(x, 10, settings(SHIFT=3, MIRROR=True, FILTERS=[8]))
    plain = keras.Sequential([keras.Input((16, 16, 3)), *model.layers[2:]])
    assert np.allclose(script.predict(model, x), script.predict(plain, x), atol=1e-6)


def test_images_move_by_whole_pixels_up_to_shift_in_both_directions(settings):
    [shift] = script.augmentation_layers((16, 24, 2), settings(SHIFT=3))
    rows, columns = np.mgrid[0:16, 0:24]
    ramps = np.tile(np.stack([rows, columns], axis=-1).astype("float32"), (200, 1, 1, 1))
    moved = np.asarray(shift(ramps, training=True))[:, 8, 12] - [8, 12]
    assert set(moved[:, 0]) == set(moved[:, 1]) == set(range(-3, 4))


def test_half_of_the_images_are_mirrored_left_to_right(settings):
    [mirror] = script.augmentation_layers((16, 16, 1), settings(SHIFT=0, MIRROR=True))
    ramp = np.tile(np.arange(16, dtype="float32")[:, None], (200, 16, 1, 1))
    left = np.asarray(mirror(ramp, training=True))[:, 0, 0, 0]
    assert set(left) == {0, 15} and 60 < (left == 15).sum() < 140


def test_whitening_gives_uncorrelated_numbers_of_spread_1():
    random = np.random.default_rng(0)
    images = random.normal(size=(200, 1, 1, 1)) + 0.5 * random.normal(size=(200, 12, 12, 3))
    images[..., 2] += 3 * images[..., 0]  # much of what the channels say is said twice
    layer = script.whitening_layer(images.astype("float32"))
    answers = np.asarray(layer(images))
    assert answers.shape == (200, 11, 11, 24)
    numbers = answers[..., :12] - answers[..., 12:]  # ReLU parted them by sign
    assert np.allclose(np.cov(numbers.reshape(-1, 12), rowvar=False), np.eye(12), atol=0.05)


def test_whitening_is_not_trained_and_divides_nothing_by_0():
    images = np.random.default_rng(0).normal(size=(50, 8, 8, 2)).astype("float32")
    images[..., 1] = 0  # a channel of one shade
    layer = script.whitening_layer(images)
    assert layer.trainable_weights == [] and len(layer.weights) == 1
    assert np.abs(layer.kernel).max() < 50


def test_identity_start_passes_the_maps_on(settings):
    model = script.build_cnn(noise(40, 8, 8, 1), 10, settings(FILTERS=[16]))
    _, first, second = convolutions(model)
    for layer, number in ((first, 8), (second, 16)):
        maps = np.random.default_rng(0).random((2, 5, 5, number)).astype("float32")
        assert np.allclose(np.asarray(layer(maps))[..., :number], maps, atol=1e-5)


def test_identity_start_leaves_whitening_and_further_filters_as_they_were(settings):
    kernels = []
    for is_on in (True, False):
        keras.utils.set_random_seed(0)
        found = settings(FILTERS=[16], IDENTITY_START=is_on)
        model = script.build_cnn(noise(40, 8, 8, 1), 10, found)
        kernels.append([layer.kernel.numpy() for layer in convolutions(model)])
    (whitening, first, second), (whitening_off, first_off, second_off) = kernels
    assert (whitening == whitening_off).all()
    assert (first[..., 8:] == first_off[..., 8:]).all() and np.ptp(first[..., 8:]) > 0
    assert (first[..., :8] != first_off[..., :8]).all() and (second != second_off).all()


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


# Chapter 4: training


def served(settings, shuffled, number=65, **changes):
    """Return the batches of images 0, 1, 2 ...: of each batch, the images' numbers.

    The label of an image is its number modulo 4.
    """
    images = np.arange(number, dtype="uint8").reshape(-1, 1, 1, 1)
    found = settings(**{"BATCH_SIZE": 32, **changes})
    dataset = script.batches(images, images.ravel() % 4, 4, found, shuffled)
    assert dataset.options().autotune.enabled is False
    numbers = []
    for x, one_hot in dataset.as_numpy_iterator():
        assert (one_hot == np.eye(4)[x.ravel() % 4]).all(), "an image has another's label"
        numbers.append(list(x.ravel()))
    return numbers


def test_batches_are_full_in_training_and_hold_all_images_otherwise(settings):
    assert [len(batch) for batch in served(settings, shuffled=True)] == [32, 32]
    first, second, last = served(settings, shuffled=False)
    assert first + second + last == list(range(65)) and len(last) == 1


def test_few_images_are_one_batch(settings):
    [batch] = served(settings, shuffled=True, number=20)
    assert sorted(batch) == list(range(20))


def test_a_first_batch_sees_all_of_the_data(settings):
    first, _ = served(settings, shuffled=True)
    assert len(set(np.array(first) // 13)) == 5, "of sorted images, each fifth"


def test_the_seed_decides_on_the_order(settings):
    keras.utils.set_random_seed(0)
    once = served(settings, shuffled=True, SEED=1)
    keras.utils.set_random_seed(0)
    assert served(settings, shuffled=True, SEED=1) == once
    keras.utils.set_random_seed(0)
    assert served(settings, shuffled=True, SEED=2) != once


def test_the_order_is_new_in_each_epoch(settings):
    images = np.arange(40, dtype="uint8")
    dataset = script.batches(images, images % 4, 4, settings(BATCH_SIZE=40), shuffled=True)
    epochs = [list(x) for _ in range(3) for x, _ in dataset.as_numpy_iterator()]
    assert len(epochs) == 3 and epochs[0] != epochs[1] != epochs[2]


def test_learning_rate_rises_over_a_fifth_and_falls_to_0_along_half_a_wave(settings):
    schedule = script.learning_rate_schedule(100, settings())
    rates = [float(schedule(step)) for step in range(101)]
    rising = np.linspace(0.004 / 20, 0.004, 21)
    falling = 0.002 * (1 + np.cos(np.linspace(0, np.pi, 81)))
    assert np.allclose(rates, [*rising, *falling[1:]], atol=1e-6)


def test_a_constant_learning_rate_is_a_number(settings):
    assert script.learning_rate_schedule(100, settings(SCHEDULE="constant")) == 0.004


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_learning_rate_for_few_steps(settings, steps):
    schedule = script.learning_rate_schedule(steps, settings())
    rates = [float(schedule(step)) for step in range(steps)]
    assert np.isfinite(rates).all() and 0 < max(rates) <= 0.004 + 1e-9


def weights_after(optimizer, *gradients):
    """Return one weight, at first 0, after each step with these gradients."""
    weight = keras.Variable([0.0])
    optimizer.build([weight])
    found = []
    for gradient in gradients:
        optimizer.apply([keras.ops.array([gradient])])
        found.append(float(weight.numpy()[0]))
    return found


def test_sgd_has_momentum(settings):
    optimizer = script.make_optimizer(0.1, settings(OPTIMIZER="sgd", WEIGHT_DECAY=0))
    # Nesterov: the sum v becomes 0.9 v + gradient, the weight moves by -0.1 (0.9 v + gradient).
    assert weights_after(optimizer, 1, 1, 0) == pytest.approx([-0.19, -0.461, -0.461 - 0.1539])


def test_adam_moves_as_far_whatever_the_size_of_the_gradients(settings):
    for gradient in (100, 0.01):
        optimizer = script.make_optimizer(0.1, settings(OPTIMIZER="adam", WEIGHT_DECAY=0))
        assert weights_after(optimizer, *3 * [gradient]) == pytest.approx(
            [-0.1, -0.2, -0.3], rel=1e-3)


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


def small_network():
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), layers.Flatten(),
                             layers.Dense(10, activation="softmax")])


def test_a_training_follows_its_schedule_and_its_optimizer(settings, tmp_path):
    (x, y), (x_val, y_val), *_ = script.load_data(settings())
    found = settings(EPOCHS=5, OPTIMIZER="sgd", LEARNING_RATE=0.02)
    model = small_network()
    history = script.train(model, x, y, x_val, y_val, tmp_path, found)
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    schedule = script.learning_rate_schedule(5 * 40, found)  # 1294 // 32 steps in an epoch
    assert np.allclose(history["learning_rate"], [schedule(40 * i) for i in range(1, 6)])
    assert list(history["epoch"]) == [0, 1, 2, 3, 4] and (history["seconds"] > 0).all()


def test_the_history_tells_training_from_validation(settings, tmp_path):
    (x, y), (x_val, _), *_ = script.load_data(settings())
    wrong = np.full(len(x_val), 1)  # whatever the image shows
    model = small_network()
    history = script.train(model, x, y, x_val, wrong, tmp_path, settings(EPOCHS=3))
    last = history.iloc[-1]
    answers = script.predict(model, x_val)
    assert last["accuracy"] > 0.5 > 0.3 > last["val_accuracy"]
    assert last["val_accuracy"] == pytest.approx(np.mean(answers.argmax(axis=1) == wrong))
    assert last["val_loss"] == pytest.approx(-np.log(answers[:, 1]).mean(), rel=1e-4)
    assert last["loss"] < history["loss"][0]


@pytest.mark.parametrize("is_terminal, verbose", [(True, 1), (False, 2)])
def test_a_terminal_shows_a_bar_and_a_file_gets_lines(
        settings, tmp_path, monkeypatch, is_terminal, verbose):
    told = {}
    model = small_network()
    monkeypatch.setattr(keras.Sequential, "fit", lambda *_, **options: told.update(options))
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal, raising=False)
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "history.csv").write_text("epoch,loss,val_loss\n0,1.5,1.5\n")
    x, y = noise(40, 8, 8, 1), np.arange(40) % 10
    script.train(model, x, y, x, y, tmp_path, settings(EPOCHS=7), 3)
    assert told["verbose"] == verbose and told["shuffle"] is False, "they are shuffled already"
    assert (told["initial_epoch"], told["epochs"]) == (3, 7)


# Chapter 5: test


@pytest.mark.parametrize("name, sizes", [("cnn", [256, 44]), ("vgg16", [32] * 9 + [12])])
def test_large_networks_are_asked_with_fewer_images_at_a_time(name, sizes):
    def answer(dataset, verbose):
        assert verbose == 2
        return [len(batch) for batch in dataset]

    model = argparse.Namespace(name=name, predict=answer)
    assert script.predict(model, np.zeros((300, 2, 2, 1)), 2) == sizes


@pytest.fixture
def tested():
    """Labels, none of the last two classes, answers, and what evaluate makes of them.

    The last class is never answered either.
    """
    x, y = noise(300, 8, 8, 1), np.arange(300) % 3
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(0.01), layers.Flatten(),
                              layers.Dense(5, activation="softmax")])
    model.layers[-1].bias[4].assign(-1000)
    names = ["a", "b", "c", "猫", "e"]
    with warnings.catch_warnings():  # nothing is said of the class without images
        warnings.simplefilter("error", UndefinedMetricWarning)
        probabilities, results = script.evaluate(model, x[:50], y[:50], x, y, names)
    assert np.allclose(probabilities, model.predict(x, verbose=0), atol=1e-6)
    return y, probabilities, results, names


def test_evaluation_agrees_with_scikit_learn(tested):
    y, probabilities, results, names = tested
    answers = probabilities.argmax(axis=1)
    assert results["test_images"] == 300 and results["validation_images"] == 50
    assert results["test_accuracy"] == accuracy_score(y, answers)
    assert results["validation_accuracy"] == accuracy_score(y[:50], answers[:50])
    assert results["test_loss"] == pytest.approx(
        log_loss(y, probabilities, labels=range(5)), rel=1e-4)
    assert results["mean_confidence"] == pytest.approx(probabilities.max(axis=1).mean())
    assert results["parameters"] == 5 * 65
    assert results["confusion_matrix"] == confusion_matrix(y, answers, labels=range(5)).tolist()
    assert results["classes"]["b"]["recall"] == np.mean(answers[y == 1] == 1)
    assert list(results["classes"])[:5] == names
    assert results["classes"]["e"]["precision"] == 0
    assert results["test_accuracy_interval"] == script.interval_of(np.sum(answers == y), 300)


def test_the_interval_is_that_of_a_published_table():
    # Newcombe (1998), table I
    assert script.interval_of(np.int64(81), 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_the_report_prints_and_writes_what_was_found(tested, tmp_path, capsys):
    y, probabilities, results, names = tested
    with warnings.catch_warnings():
        warnings.simplefilter("error", UndefinedMetricWarning)
        script.report(results, probabilities, y, names, tmp_path)
    printed = capsys.readouterr().out
    for number in (results["test_accuracy"], *results["test_accuracy_interval"]):
        assert f"{number:.2%}" in printed
    assert f"{results['test_loss']:.4f}" in printed
    assert f"{results['mean_confidence']:.1%}" in printed
    written = (tmp_path / "classification_report.txt").read_text(encoding="utf-8")
    assert written in printed and written == classification_report(
        y, probabilities.argmax(axis=1), labels=range(5), target_names=names, digits=4,
        zero_division=0)


@pytest.mark.parametrize("difference, is_far", [
    (0.06, True), (-0.06, True), (0.04, False), (-0.04, False)])
def test_how_sure_it_was_is_called_far_apart_only_where_it_is(
        tested, tmp_path, capsys, difference, is_far):
    y, probabilities, results, names = tested
    results["mean_confidence"] = results["test_accuracy"] + difference
    script.report(results, probabilities, y, names, tmp_path)
    assert ("far apart" in capsys.readouterr().out) == is_far
