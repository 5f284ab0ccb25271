"""The chapters of the script: data, model, training, evaluation, saving. No network, no real data.

`digits` ships with scikit-learn; all else is made here. Runs are calls of main() in this process.
"""

import ast
import csv
import gzip
import os
import pathlib
import re
import shutil
import sys
import tomllib

import keras
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss

import image_recognition_cnn as script
from conftest import restart
from helpers import (
    FILES, NUMBERS, ROOT, SCRIPT, assert_complete, contents, digits_test_part, metrics,
    script_of_a_short_run)

SHORT = {"EPOCHS": 2, "FILTERS": [8]}


def test_first_layer_whitens_and_the_others_start_as_identity(settings):
    settings(FILTERS=[16])
    images = digits_test_part()[0]
    model = script.build_cnn(images, 10)
    normalized = next(
        layer for layer in model.layers if isinstance(layer, keras.layers.Normalization))(images)
    whitening, first, second = [
        layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    positive = np.asarray(whitening(normalized))[..., :4]
    numbers = positive - np.asarray(whitening(normalized))[..., 4:]  # ReLU parted them by sign
    assert np.allclose(np.cov(numbers.reshape(-1, 4), rowvar=False), np.eye(4), atol=0.1)
    assert np.allclose(np.asarray(first(whitening(normalized)))[..., :4], positive, atol=1e-5)
    maps = np.random.default_rng(0).random((2, 3, 3, 16))
    assert np.allclose(np.asarray(second(maps)), maps, atol=1e-5)


def tricks_in(model, schedule):
    """The names of the tricks that are found in a model and its learning rate."""
    found = set()
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    if np.allclose(convolutions[-1].get_weights()[0][1, 1], np.eye(8)):
        found.add("IDENTITY_START")
    if "whitening" in [layer.name for layer in model.layers]:
        found.add("WHITENING")
    kinds = {type(layer) for layer in model.layers}
    if keras.layers.BatchNormalization in kinds:
        found.add("BATCH_NORMALIZATION")
    assert (keras.layers.BatchNormalization in kinds) != convolutions[-1].use_bias
    if keras.layers.RandomTranslation in kinds:
        found.add("AUGMENTATION")
    if keras.layers.RandomFlip in kinds:
        found.add("MIRROR")
    flatten = next(layer for layer in model.layers if isinstance(layer, keras.layers.Flatten))
    if flatten.input.shape[1:3] == (1, 1):
        found.add("GLOBAL_POOLING")
    if not isinstance(schedule, float):
        found.add("SCHEDULE")
    return found


@pytest.fixture
def eagerly():
    """Compile nothing: for a few steps, that takes longer than the steps."""
    script.tf.config.run_functions_eagerly(True)
    yield
    script.tf.config.run_functions_eagerly(False)


TRICKS = {"WHITENING", "BATCH_NORMALIZATION", "IDENTITY_START", "AUGMENTATION", "MIRROR",
          "GLOBAL_POOLING", "SCHEDULE"}


@pytest.mark.parametrize("off", [
    set(), {"WHITENING"}, {"BATCH_NORMALIZATION"}, {"IDENTITY_START"}, {"AUGMENTATION", "MIRROR"},
    {"MIRROR"}, {"GLOBAL_POOLING"}, {"SCHEDULE"}], ids=lambda off: "-".join(sorted(off)) or "none")
def test_each_trick_can_be_switched_off(settings, no_pictures, eagerly, tmp_path, off):
    values = {name: name not in off for name in TRICKS - {"SCHEDULE"}}
    if "AUGMENTATION" in off:
        values["MIRROR"] = True  # without effect then
    settings(**values, SCHEDULE="constant" if "SCHEDULE" in off else "cosine", FILTERS=[8], EPOCHS=2)
    x, y = digits_test_part()
    model = script.build_model(x, 10)
    assert tricks_in(model, script.learning_rate_schedule(100, 0.004)) == TRICKS - off
    history = script.train(model, x[:128], y[:128], x[128:160], y[128:160], "digits", tmp_path)
    rates = list(history["learning_rate"])
    assert len(rates) == 2 and history["loss"][1] < history["loss"][0]
    if "SCHEDULE" in off:
        assert rates == pytest.approx([0.004, 0.004])
    else:
        assert 0.001 < rates[0] < 0.004 and rates[1] == pytest.approx(0, abs=1e-7)
    whitening = [layer for layer in model.layers if layer.name == "whitening"]
    assert all(not layer.trainable for layer in whitening)


@pytest.mark.parametrize("units, number", [(0, 1), (16, 2)])
def test_hidden_dense_layer_can_be_left_out(settings, units, number):
    settings(DENSE_UNITS=units, FILTERS=[8])
    x = digits_test_part()[0]
    model = script.build_model(x, 10)
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert len(dense) == number and dense[-1].units == 10
    assert script.predict(model, x[:5]).shape == (5, 10)


def test_learning_rate_schedules(settings):
    settings(SCHEDULE="constant")
    assert script.learning_rate_schedule(100, 0.004) == 0.004
    settings()
    schedule = script.learning_rate_schedule(100, 0.004)
    rates = [float(schedule(step)) for step in range(101)]
    assert 0 < rates[0] < rates[10] < rates[20] == pytest.approx(0.004, abs=1e-6)
    assert rates[20] > rates[60] > rates[99] > rates[100] == pytest.approx(0, abs=1e-7)


def test_batches_are_full_each_image_gets_its_turn_and_labels_fit(settings):
    settings(BATCH_SIZE=32)
    images = np.arange(65, dtype="uint8").reshape(-1, 1, 1, 1).repeat(8, axis=1).repeat(8, axis=2)
    labels = np.arange(65) % 4
    served = script.batches(images, labels, 4, training=True)
    seen = set()
    orders = []
    for _ in range(8):
        epoch = [(x, y) for x, y in served.as_numpy_iterator()]
        assert [len(x) for x, _ in epoch] == [32, 32], "a batch of one image ruins the averages"
        numbers = np.concatenate([x[:, 0, 0, 0] for x, _ in epoch])
        one_hot = np.concatenate([y for _, y in epoch])
        assert (one_hot.argmax(axis=1) == labels[numbers]).all(), "an image has another's label"
        assert len(set(numbers)) == 64
        seen |= set(numbers)
        orders.append(tuple(numbers))
    assert len(seen) == 65 and len(set(orders)) == 8
    plain = script.batches(images, labels, 4)
    numbers = np.concatenate([x[:, 0, 0, 0] for x, _ in plain.as_numpy_iterator()])
    assert list(numbers) == list(range(65)), "in a test, all images in their order"


def test_calibration_changes_confidences_but_no_answer(settings):
    settings()
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 600)
    x = random.normal(size=(600, 8, 8, 1)) + labels[:, None, None, None]
    model = keras.Sequential([
        keras.Input((8, 8, 1)), keras.layers.Flatten(),
        keras.layers.Dense(3, activation="softmax", dtype="float32")])
    kernel = np.zeros((64, 3))
    kernel[:] = [-2, 0, 2]
    model.layers[-1].set_weights([kernel, np.array([32.0, 0, -160])])  # far too sure
    before = script.predict(model, x)
    temperature = script.calibrate(model, x, labels)
    after = script.predict(model, x)
    assert temperature > 2 and (before.argmax(axis=1) == after.argmax(axis=1)).all()
    assert script.mean_loss(labels, after) < script.mean_loss(labels, before)
    assert np.allclose(script.change_temperature(before, temperature), after, atol=1e-3)
    sure = np.eye(3)[labels] * 0.998 + 0.001  # all right: the temperature must not fall to 0
    assert script.change_temperature(sure, 0.5).max() < 1.0


def test_calibration_error_of_made_probabilities():
    probabilities = np.array([[0.8, 0.2]] * 10)
    labels = np.array([0] * 8 + [1] * 2)
    assert script.calibration_error(labels, probabilities) == pytest.approx(0, abs=1e-9)
    assert script.calibration_error(np.zeros(10, int), probabilities) == pytest.approx(0.2)
    mixed = np.array([[0.8, 0.2]] * 5 + [[1.0, 0.0]] * 5)
    assert script.calibration_error(np.array([0] * 5 + [1] * 5), mixed) == pytest.approx(0.6)


def test_test_loss_is_without_label_smoothing():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5), 100)
    labels = np.arange(100) % 5
    expected = log_loss(labels, probabilities)
    assert script.mean_loss(labels, probabilities) == pytest.approx(expected, rel=1e-4)


def test_validation_images_do_not_change_with_the_seed(settings):
    parts = []
    for seed in (0, 1):
        settings(SEED=seed)
        keras.utils.set_random_seed(seed)
        _, validation, test, _, _ = script.load_data()
        parts.append((validation[0], test[0]))
    assert (parts[0][0] == parts[1][0]).all() and (parts[0][1] == parts[1][1]).all()


def test_same_seed_same_metrics_and_a_row_for_each_run(run, no_pictures, tmp_path, capsys):
    outcomes = []
    for seed in (3, 3, 4):
        run(SEED=seed, EPOCHS=1, FILTERS=[8])
        outcome = metrics(tmp_path / "outputs" / "digits")
        del outcome["training_seconds"], outcome["settings"]
        outcomes.append(outcome)
    assert outcomes[0] == outcomes[1] and outcomes[0]["test_loss"] != outcomes[2]["test_loss"]
    with open(tmp_path / "outputs" / "experiments.csv", newline="") as file:
        assert [row["SEED"] for row in csv.DictReader(file)] == ["3", "3", "4"]
    printed = capsys.readouterr().out
    assert "Changed: nothing" in printed and "Changed: SEED 3 -> 4" in printed


def test_mnist_cifar10_and_other_settings(run, no_pictures, tmp_path, monkeypatch):
    """Made data of the real shapes in place of Keras' loaders."""
    sys.path.insert(0, str(ROOT / "tests" / "made_data"))
    from sitecustomize import made

    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: made((28, 28)))
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: made((32, 32, 3)))
    run(DATASET="mnist", OPTIMIZER="sgd", AUGMENTATION=False, EPOCHS=1, FILTERS=[8])
    folder = tmp_path / "outputs" / "mnist"
    assert_complete(folder, files=NUMBERS)
    assert metrics(folder)["settings"]["LEARNING_RATE"] == 0.1
    assert "test_accuracy_two_views" not in metrics(folder)
    model, _, results = run(
        DATASET="cifar10", PRECISION="mixed_bfloat16", LABEL_SMOOTHING=0, BATCH_SIZE=16, EPOCHS=3,
        FILTERS=[8], OUTPUT_DIR="a/b")
    folder = tmp_path / "a" / "b" / "cifar10"
    assert_complete(folder, files=NUMBERS)
    assert results["test_accuracy"] > 0.3, "ten classes of plain colours, and nothing learned"
    _, (x_test, y_test) = made((32, 32, 3))
    seen = script.predict(model, x_test)
    mirrored = script.predict(model, x_test[:, :, ::-1])
    single = (seen.argmax(axis=1) == y_test.ravel()).mean()
    both = ((seen + mirrored).argmax(axis=1) == y_test.ravel()).mean()
    assert single == pytest.approx(results["test_accuracy"]), "the single view is the headline"
    assert both == pytest.approx(results["test_accuracy_two_views"])


@pytest.fixture
def fashion_folder():
    """Where Keras looks for copies of Fashion-MNIST; empty again after the test."""
    folder = pathlib.Path(os.environ["KERAS_HOME"]) / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def test_fashion_mnist_from_copies_put_where_keras_looks(settings, fashion_folder):
    made = np.random.default_rng(0)
    for part, number in (("train", 300), ("t10k", 100)):
        labels = (np.arange(number) % 10).astype("uint8")
        images = made.integers(0, 60, (number, 28, 28)).astype("uint8")
        for image, label in zip(images, labels):
            image[2 * label: 2 * label + 8] += 180
        for name, header, array in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            with gzip.open(fashion_folder / f"{part}-{name}-ubyte.gz", "wb") as file:
                file.write(bytes(header) + array.tobytes())
    settings(DATASET="fashion_mnist")
    *parts, class_names, about = script.load_data()
    assert [x.shape for x, _ in parts] == [(270, 28, 28, 1), (30, 28, 28, 1), (100, 28, 28, 1)]
    assert class_names[9] == "Ankle boot" and about["dataset"] == "fashion_mnist"
    for images, labels in parts:
        assert images.dtype == "uint8"
        assert (images.mean(axis=2)[range(len(labels)), 2 * labels, 0] > 150).all()


@pytest.mark.parametrize("name, place", [
    ("mnist", "mnist.npz"), ("fashion_mnist", "fashion-mnist"),
    ("cifar10", "cifar-10-batches-py-target_archive")])
def test_failed_download_says_where_a_copy_goes_and_changes_nothing(
        run, tmp_path, capsys, name, place):
    earlier = tmp_path / "outputs" / name
    earlier.mkdir(parents=True)
    (earlier / "metrics.json").write_text("an earlier run")
    with pytest.raises(SystemExit) as ended:
        run(DATASET=name)
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert str(pathlib.Path(os.environ["KERAS_HOME"]) / "datasets" / place) in printed
    assert "https://" in printed and "--dataset digits" in printed
    assert contents(earlier) == {"metrics.json": b"an earlier run"}


def test_model_from_a_stranger_runs_no_code(run, tmp_path, capsys):
    (tmp_path / "outputs" / "digits").mkdir(parents=True)
    code = keras.layers.Lambda(lambda x: [open("owned", "w").close(), x][1])
    model = keras.Sequential([keras.Input((8, 8, 1)), code])
    model.save(tmp_path / "outputs" / "digits" / "model.keras")
    (tmp_path / "owned").unlink(missing_ok=True)  # Keras ran it here, to know the shape
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as ended:
        run(PREDICT=["a.png"])
    assert ended.value.code == 2 and "safe" in capsys.readouterr().err
    assert not (tmp_path / "owned").exists()


def test_own_folder_of_26_letters_answers_in_its_words(run, no_pictures, tmp_path, capsys):
    random = np.random.default_rng(0)
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        (tmp_path / "my letters" / letter).mkdir(parents=True)
        for i in range(12):
            picture = Image.new("L", (28, 28))
            font = ImageFont.load_default(20)
            ImageDraw.Draw(picture).text(random.integers(2, 8, 2).tolist(), letter, 255, font)
            picture.save(tmp_path / "my letters" / letter / f"{i}.png")
    run(DATASET="my letters", IMAGE_SIZE=28, EPOCHS=10, FILTERS=[16, 16])
    folder = tmp_path / "outputs" / "my letters"
    assert_complete(folder, classes=26, files=NUMBERS)
    assert list(metrics(folder)["classes"])[:26] == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert metrics(folder)["test_accuracy"] > 0.8
    (tmp_path / "my letters").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    run(DATASET="my letters", PREDICT=["elsewhere/Q/0.png", "elsewhere/W/3.png"])
    printed = capsys.readouterr().out
    assert re.search(r"0.png: Q \d", printed) and re.search(r"3.png: W \d", printed)


def test_own_photos_of_all_modes_with_train_and_test(run, no_pictures, tmp_path, capsys):
    """Three classes by colour, with files among them that are no pictures."""
    random = np.random.default_rng(0)
    kinds = [("RGB", "jpg"), ("RGBA", "png"), ("P", "gif"), ("CMYK", "jpg"), ("RGB", "bmp")]
    for part, number in (("train", 30), ("test", 10)):
        for place, name in enumerate(("blue sky", "red wine", "on $^$")):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for i in range(number):
                mode, ending = kinds[i % 5]
                pixels = random.integers(0, 90, (*random.integers(20, 200, 2), 3)).astype("uint8")
                pixels[..., 2 - place] += 150
                picture = Image.fromarray(pixels).convert(mode)
                picture.save(tmp_path / "photos" / part / name / f"{i}.{ending}")
    (tmp_path / "photos" / "train" / "red wine" / "text.png").write_text("no picture at all")
    run(DATASET="photos", IMAGE_SIZE=32, EPOCHS=10, FILTERS=[8, 16], BATCH_SIZE=16)
    assert "text.png" in capsys.readouterr().err
    folder = tmp_path / "outputs" / "photos"
    assert_complete(folder, classes=3, files=NUMBERS)
    found = metrics(folder)
    assert np.sum(found["confusion_matrix"]) == 30 and found["test_accuracy"] > 0.6


@pytest.mark.parametrize("with_test", [True, False])
def test_own_npz_file(run, no_pictures, settings, tmp_path, with_test):
    y = np.arange(60) % 2
    x = np.random.default_rng(0).integers(0, 40, (60, 16, 16)) + 200 * y[:, None, None]
    x = x.astype("uint8")
    arrays = {"x_train": x, "y_train": y, "x_test": x[:20], "y_test": y[:20]}
    if not with_test:
        arrays = {"x_train": x, "y_train": np.array(["off", "on"])[y]}
    np.savez(tmp_path / "lamp.npz", **arrays)
    if not with_test:  # no second training
        settings(DATASET=str(tmp_path / "lamp.npz"), FILTERS=[8])
        train, validation, test, class_names, _ = script.load_data()
        assert [len(part[0]) for part in (train, validation, test)] == [43, 5, 12]
        assert class_names == ["off", "on"]
        for images, labels in (train, validation, test):
            assert ((images.mean(axis=(1, 2, 3)) > 128) == (labels == 1)).all()
        return
    run(DATASET="lamp.npz", **SHORT)
    folder = tmp_path / "outputs" / "lamp"
    assert_complete(folder, classes=2, files=NUMBERS)
    assert list(metrics(folder)["classes"])[:2] == ["0", "1"]
    assert np.sum(metrics(folder)["confusion_matrix"]) == 20


def test_resume_after_the_data_changed_is_one_sentence(run, no_pictures, monkeypatch, tmp_path, capsys):
    x = np.random.default_rng(0).integers(0, 255, (60, 8, 8)).astype("uint8")
    y = np.arange(60) % 2
    np.savez(tmp_path / "lamp.npz", x_train=x, y_train=y)
    with monkeypatch.context() as patch:
        patch.setattr(script, "report", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(DATASET="lamp.npz", **SHORT)
    x[7, 3, 3] += 1
    np.savez(tmp_path / "lamp.npz", x_train=x, y_train=y)
    with pytest.raises(SystemExit) as ended:
        run(DATASET="lamp.npz", RESUME=True, **SHORT)
    assert ended.value.code == 2 and "--resume" in capsys.readouterr().err


def test_constant_pictures_stop_before_the_training(run, no_pictures, tmp_path, capsys):
    x = np.ones((60, 8, 8), "uint8") * (np.arange(60) % 2)[:, None, None].astype("uint8") * 200
    np.savez(tmp_path / "lamp.npz", x_train=x, y_train=np.arange(60) % 2)
    with pytest.raises(SystemExit) as ended:
        run(DATASET="lamp.npz", **SHORT)
    assert ended.value.code == 2 and "of one shade" in capsys.readouterr().err


@pytest.mark.parametrize("inverted", [False, True])
def test_white_on_black_is_what_the_images_are_not_their_name(settings, tmp_path, inverted):
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8) * 15).astype("uint8")
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    np.savez(tmp_path / "some.npz", x_train=255 - x if inverted else x, y_train=y)
    settings(DATASET=str(tmp_path / "some.npz"), FILTERS=[8])
    about = script.load_data()[4]
    assert about["white_on_black"] is not inverted


def test_a_batch_holds_at_most_all_training_images(settings):
    settings(BATCH_SIZE=1000)
    images = np.zeros((65, 8, 8, 1), "uint8")
    batches = script.batches(images, np.arange(65) % 4, 4, training=True)
    assert [len(x) for x, _ in batches.as_numpy_iterator()] == [65]


def test_range_of_16_bit_pictures_goes_with_the_model(settings, tmp_path):
    for name, brightness in (("dark", 700), ("bright", 3000)):
        (tmp_path / "lamp" / name).mkdir(parents=True)
        for i in range(8):
            values = np.linspace(0, brightness - i, 400).reshape(20, 20).astype("uint16")
            Image.fromarray(values).save(tmp_path / "lamp" / name / f"{i}.png")
    settings(DATASET=str(tmp_path / "lamp"), IMAGE_SIZE=8, FILTERS=[8])
    (x_train, y_train), _, _, class_names, about = script.load_data()
    assert tuple(about["pixel_range"]) == (0, 3000)
    assert x_train[y_train == 0].max() > 3.5 * x_train[y_train == 1].max()  # bright, dark
    new_picture = script.prepare_picture(tmp_path / "lamp" / "dark" / "0.png", (8, 8, 1), about)[0]
    assert 40 < new_picture.max() < 65, "scaled as the training images, not by itself"


@pytest.mark.parametrize("largest, warned", [(1, True), (300, False)])
def test_shares_beside_16_bits_get_a_warning(settings, tmp_path, capsys, largest, warned):
    for name, kind, high in (("a", "float32", largest), ("b", "uint16", 40_000)):
        (tmp_path / "x" / name).mkdir(parents=True)
        for i in range(8):
            values = np.linspace(0, high, 400).reshape(20, 20).astype(kind)
            Image.fromarray(values).save(tmp_path / "x" / name / f"{i}.tiff")
    settings(DATASET=str(tmp_path / "x"), IMAGE_SIZE=8, FILTERS=[8])
    script.load_data()
    assert ("Bring all to one range" in capsys.readouterr().err) == warned


@pytest.mark.parametrize("kind", ["sizes", "brightness"])
def test_dark_images_whose_size_or_brightness_counts_are_no_drawings(kind):
    images = np.zeros((40, 24, 24, 1), "uint8")
    for i, image in enumerate(images):
        side = 4 + i % 2 * 12 if kind == "sizes" else 12
        image[4:4 + side, 4:4 + side] = 250 if kind == "sizes" else 120 + i % 2 * 130
    assert not script.looks_white_on_black(images)


def test_simple_answers_see_all_classes_of_a_sorted_part(monkeypatch):
    seen = []
    monkeypatch.setattr(script, "simple_answers", lambda _x, _y, x, y: seen.extend(y) or {})
    x = np.zeros((12_000, 1, 1, 1), "uint8")
    y = np.arange(12_000) // 4000
    script.describe_data(x, y, x, y, x, ["a", "b", "c"])
    assert len(seen) == 5000 and min(np.bincount(seen, minlength=3)) > 1500


def test_drawings_are_not_told_by_the_first_class_alone():
    images = np.zeros((20_000, 28, 28, 1), "uint8")
    images[:, 4:24, 4:24] = 250
    assert script.looks_white_on_black(images)
    images[10_000:] = 255 - images[10_000:]
    assert not script.looks_white_on_black(images)


def test_loss_that_became_nan_is_one_sentence(run, no_pictures, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(EPOCHS=2, FILTERS=[8], LEARNING_RATE=10.0, WEIGHT_DECAY=100.0)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert "NaN" in printed and "--learning-rate 1" in printed
    assert not (tmp_path / "outputs" / "digits").exists()


def test_ctrl_c_before_the_first_epoch_is_one_sentence_too(
        run, no_pictures, monkeypatch, tmp_path, capsys):
    """While TensorFlow prepares the training there is no history.csv yet."""
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "batches", interrupted)
    with pytest.raises(SystemExit) as ended:
        run(EPOCHS=1, FILTERS=[8])
    assert ended.value.code == 2 and "Ctrl-C in the first epoch" in capsys.readouterr().err
    assert not (tmp_path / "outputs" / "digits").exists()


def test_ctrl_c_later_ends_the_training_and_the_rest_is_done(
        run, no_pictures, monkeypatch, tmp_path, capsys):
    def interrupt(epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(script, "progress_callback", lambda *_: keras.callbacks.LambdaCallback(
        on_epoch_begin=interrupt))
    try:
        run(EPOCHS=500, FILTERS=[8])
    except KeyboardInterrupt:  # it would end all tests
        pytest.fail("nothing was tested and published")
    assert "Ctrl-C ends the training" in capsys.readouterr().out
    assert_complete(tmp_path / "outputs" / "digits", epochs=2, files=NUMBERS)


def test_run_that_fails_after_the_training_resumes_without_training(
        run, no_pictures, monkeypatch, tmp_path):
    earlier = tmp_path / "outputs" / "digits"
    earlier.mkdir(parents=True)
    (earlier / "metrics.json").write_text("an earlier run")
    with monkeypatch.context() as patch:
        patch.setattr(script, "report", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(**SHORT)
    assert contents(earlier) == {"metrics.json": b"an earlier run"}
    unfinished = earlier.with_name("digits.unfinished")
    before = (unfinished / "history.csv").read_bytes()
    run(**SHORT, RESUME=True)
    assert_complete(earlier, files=NUMBERS)
    assert (earlier / "history.csv").read_bytes() == before, "trained again"
    # that its last row has the validation accuracy of metrics.json, assert_complete has seen


def test_cells_run_one_after_the_other(tmp_path, monkeypatch):
    """As in VS Code, PyCharm or Spyder: no __file__, and a command line that is not ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["", "--not-a-flag-of-ours"])
    names = {"__name__": "__main__"}
    *cells, last = script_of_a_short_run().split("\n# %%")
    assert len(cells) > 20 and "main()" in last
    for cell in cells:
        exec(compile(cell if cell[0] == '"' else "# %%" + cell, "cell", "exec"), names)
    for name in [name for name in names if name.startswith("draw_")] + ["write_phone_model"]:
        names[name] = lambda *_: None  # pictures are looked at in other tests
    exec(compile(last[last.index("\n"):], "cell", "exec"), names)
    names["plt"].close("all")
    folder = tmp_path / "outputs" / "digits"
    assert_complete(folder, epochs=1, files=sorted([*NUMBERS, "try_it.html"]))


def test_early_pooling_saves_half_of_all_multiplications(settings):
    """As the docstring of add_block says, with the filters of CIFAR-10."""
    settings(DATASET="cifar10")
    images = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3)).astype("uint8")
    model = script.build_cnn(images, 10)
    early = 0
    late = 0  # if pooling came behind the second convolution of a block
    for layer in model.layers:
        if isinstance(layer, script.layers.Conv2D):
            per_place = layer.kernel.shape.num_elements()
            places = layer.output.shape[1] * layer.output.shape[2]
            early += per_place * places
            is_first_of_block = layer.kernel.shape[2] != layer.kernel.shape[3]
            late += per_place * (places if is_first_of_block else places_before)
            places_before = places
    assert 0.4 < early / late < 0.6


def test_readme_and_head_name_only_what_is_there(tmp_path, monkeypatch, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    flags = {script.flag(name) for name in script.setting_rules} | {"--help", "--version"}
    for text in (readme, script.__doc__):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
        unknown = {word for word in named if word not in flags}
        assert not {word for word in unknown if "--" + word.removeprefix("--no-") not in flags}
    rows = re.findall(r"^\| ((?:`[\w.]+`(?:, )?)+) \|", readme, re.MULTILINE)
    named = set(re.findall(r"`([\w]+\.\w+)`", " ".join(rows)))
    assert named == set(FILES), "the README's table of files"
    # Each command at the head of the script is a line of its own that the script understands.
    commands = re.findall(r"^    python image_recognition_cnn.py(.*)", script.__doc__, re.MULTILINE)
    assert len(commands) == 4
    (tmp_path / "my" / "pictures").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "runs_as_program", lambda: True)
    monkeypatch.setattr(script, "prepare_program", lambda: None)
    for command in commands:
        restart()
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *command.partition("#")[0].split()])
        script.read_settings()
    restart()
    assert capsys.readouterr().err == ""


def test_requirements_stand_the_same_in_both_places():
    source = SCRIPT.read_text(encoding="utf-8")
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", source, re.MULTILINE)[1]
    metadata = tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))
    assert metadata["dependencies"] == (ROOT / "requirements.txt").read_text().split()
    assert metadata["requires-python"] == ">=3.11,<3.14"


def test_how_it_reads():
    """Short lines, the story first, and none of the constructs that must be run to be understood."""
    source = SCRIPT.read_text(encoding="utf-8")
    lines = source.splitlines()
    assert not [i for i, line in enumerate(lines, 1) if len(line) > 100]
    chapter = next(i for i, line in enumerate(lines, 1) if line.startswith("# %% 1. Data"))
    assert chapter < 140
    tree = ast.parse(source)
    [story] = [node for node in tree.body if getattr(node, "name", "") == "main"]
    assert story.end_lineno - story.lineno < 50, "main() fits on one screen"
    assert riddles(tree) == []


def riddles(tree):
    """The constructs that are not to be used, as (line, what)."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.NamedExpr):
            found.append((node.lineno, "walrus"))
        if isinstance(node, ast.ClassDef):
            found.append((node.lineno, "class"))
        if len(getattr(node, "generators", [])) > 1:
            found.append((node.lineno, "comprehension with two for"))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.IfExp):
            found.append((node.lineno, "conditional expression as a statement"))
        if isinstance(node, ast.IfExp):
            if any(isinstance(part, ast.IfExp) for part in (node.body, node.orelse, node.test)):
                found.append((node.lineno, "nested conditional expression"))
        if isinstance(node, ast.Lambda) and isinstance(node.body, (ast.Tuple, ast.List)):
            if any(isinstance(part, ast.Call) for part in node.body.elts[:-1]):
                found.append((node.lineno, "lambda with side effects"))
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Call):
            if getattr(node.value.func, "id", "") == "dict":
                found.append((node.lineno, "dict(...)[x]"))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            if isinstance(node.targets[0], ast.Tuple):
                if any(isinstance(part, ast.Call) for part in node.value.elts):
                    found.append((node.lineno, "two things computed in one line"))
        if isinstance(node, ast.Slice) and isinstance(node.step, ast.UnaryOp):
            if node.lower is not None or node.upper is not None:
                found.append((node.lineno, "slice that goes back from or to a bound"))
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg is None and not isinstance(keyword.value, ast.Name):
                    found.append((node.lineno, "**kwargs that are built"))
    return found


@pytest.mark.parametrize("line", [
    "if (n := 3): pass", "class A: pass", "[i for a in b for i in a]", "f() if a else g()",
    "x = 1 if a else 2 if b else 3", "f = lambda x: (print(x), x)", "dict(a=1)[b]",
    "a, b = min(c), max(c)", "a[5::-1]", "a[:5:-1]", "f(**dict(a=1))", "f(**{'a': 1} | b)"])
def test_riddles_are_found(line):
    assert len(riddles(ast.parse(line))) == 1
    plain = "a, b = 1, 2; a[::-1]; f(**more); x = 1 if a else 2; sorted(a, key=lambda n: (f(n) != n, n))"
    assert riddles(ast.parse(plain)) == []
