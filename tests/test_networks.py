"""Transfer learning with random weights (the real ones are a download), and the saved network."""

import json

import keras
import numpy as np
import pytest

import image_recognition_cnn as script
from helpers import FILES, assert_complete, noise, one_sentence

MOBILE = keras.applications.mobilenet_v2


def pretrained(settings, model="mobilenet_v2", size=32, channels=3, **changes):
    keras.utils.set_random_seed(0)
    found = settings(MODEL=model, IMAGE_SIZE=size, **changes)
    return script.build_pretrained((24, 20, channels), 4, found, weights=None)


@pytest.fixture
def narrow(monkeypatch):
    """MobileNetV2 with a tenth of its width and random weights: the same layers, but fast."""
    build = MOBILE.MobileNetV2

    def build_narrow(weights, **options):
        assert weights in ("imagenet", None)
        return build(weights=None, alpha=0.1, **options)

    monkeypatch.setattr(MOBILE, "MobileNetV2", build_narrow)


def base_of(network):
    features = network.layers[0]
    return next(layer for layer in features.layers if isinstance(layer, keras.Model))


@pytest.mark.parametrize("model, channels", [
    ("mobilenet_v2", 1), ("mobilenet_v2", 3), ("vgg16", 1), ("resnet50", 3)])
def test_a_pretrained_network_gets_its_own_numbers(settings, narrow, model, channels):
    network = pretrained(settings, model, 32, channels)
    images = noise(3, 24, 20, channels)
    coloured = np.repeat(images, 3 // channels, axis=3).astype("float32")
    large = keras.layers.Resizing(32, 32)(coloured)
    wanted = script.PRETRAINED[model][0].preprocess_input(np.array(large))
    maps = base_of(network).predict(wanted, verbose=0).mean(axis=(1, 2))
    spread = maps - maps.mean(axis=1, keepdims=True)
    spread = spread / np.sqrt(spread.var(axis=1, keepdims=True) + 1e-3)
    features, head = network.layers
    found = features.predict(images, verbose=0)
    assert np.abs(found - spread).max() < 1e-3 * max(1, np.abs(spread).max())
    answers = network.predict(images, verbose=0)
    assert np.allclose(answers.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(head.predict(found, verbose=0), answers, atol=1e-5)
    assert network.name == model, "by this name it is asked with 32 images at a time"


def test_a_pretrained_network_is_saved_and_loaded_whole(settings, narrow, tmp_path):
    network = pretrained(settings)
    network.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")  # runs no code of the file
    images = noise(3, 24, 20, 3)
    assert np.allclose(loaded.predict(images, verbose=0), network.predict(images, verbose=0),
                       atol=1e-6)


def test_a_pretrained_network_is_frozen_but_for_its_head(settings, narrow):
    network = pretrained(settings, DROPOUT=0.3, SHIFT=2, MIRROR=True)
    head = network.layers[1]
    assert [weight.path for weight in network.trainable_weights] == [
        weight.path for weight in head.trainable_weights]
    assert head.layers[0].rate == 0.3 and head.layers[1].kernel.shape[1] == 4
    assert {"shift", "mirror"} <= {layer.name for layer in network.layers[0].layers}


def test_its_batch_normalization_stays_as_in_a_test(settings, narrow):
    network = pretrained(settings, SHIFT=0)
    images = noise(8, 24, 20, 3)
    features = network.layers[0]
    features.trainable = True
    assert np.allclose(features(images, training=True), features(images, training=False), atol=1e-5)


LABELS = np.arange(12) % 4


def train_pretrained(settings, folder, **changes):
    """Train a small one on 12 images; return the network, its base's old weights, the history."""
    found = settings(**{"MODEL": "mobilenet_v2", "EPOCHS": 2, "BATCH_SIZE": 4, "IMAGE_SIZE": 32,
                        **changes})
    keras.utils.set_random_seed(0)
    network = script.build_pretrained((24, 20, 3), 4, found)
    before = [np.array(weight) for weight in base_of(network).weights]
    images = noise(12, 24, 20, 3)
    history = script.train_pretrained(network, images, LABELS, images, LABELS, folder, found)
    return network, before, history


@pytest.mark.parametrize("mirror", [True, False])
def test_the_head_learns_from_the_features_of_each_view(
        settings, narrow, tmp_path, monkeypatch, capsys, mirror):
    calls = []
    train = script.train

    def noted(*arguments):
        calls.append(arguments)
        return train(*arguments)

    monkeypatch.setattr(script, "train", noted)
    network, before, history = train_pretrained(settings, tmp_path, MIRROR=mirror)
    features, head = network.layers
    [(trained, numbers, labels, numbers_val, labels_val, *_)] = calls
    images = noise(12, 24, 20, 3)
    views = np.concatenate([images, images[:, :, ::-1]]) if mirror else images
    assert trained is head and list(labels) == [*LABELS, *LABELS][:len(views)]
    assert np.allclose(numbers, features.predict(views, verbose=0), rtol=0.01, atol=0.01)
    assert np.allclose(numbers_val, features.predict(images, verbose=0), rtol=0.01, atol=0.01)
    assert numbers.dtype == numbers_val.dtype == "float16", "half of the memory"
    assert list(labels_val) == list(LABELS) and list(history["epoch"]) == [0, 1]
    assert "mobilenet_v2 looks at all pictures" in capsys.readouterr().out
    assert all((old == new).all() for old, new in zip(before, base_of(network).get_weights()))


def test_fine_tuning_trains_the_last_third_but_no_batch_normalization(settings, narrow, tmp_path):
    network, before, history = train_pretrained(settings, tmp_path, FINE_TUNE=1)
    base = base_of(network)
    assert list(history["epoch"]) == [0, 1, 2]
    late = {weight.path for layer in base.layers[len(base.layers) * 2 // 3:]
            for weight in layer.trainable_weights
            if not isinstance(layer, keras.layers.BatchNormalization)}
    assert len(late) > 10 and {weight.path for weight in base.trainable_weights} == late
    changed = {weight.path for weight, old in zip(base.weights, before)
               if (weight.numpy() != old).any()}
    assert changed <= late and len(changed) > len(late) / 2


@pytest.fixture
def trainings(monkeypatch):
    """The calls of train, which does nothing here: after 2 epochs each training is over."""
    calls = []

    def stand_in(*arguments):
        calls.append(arguments)
        return [0, 1]  # a row for each epoch

    monkeypatch.setattr(script, "train", stand_in)
    return calls


def test_fine_tuning_takes_small_steps_without_decay_and_leaves_the_settings(
        settings, narrow, tmp_path, trainings):
    network, _, _ = train_pretrained(settings, tmp_path, EPOCHS=2, FINE_TUNE=3, OPTIMIZER="sgd")
    (*_, of_head), (model, x, y, x_val, y_val, _, fine, first_epoch) = trainings
    images = noise(12, 24, 20, 3)
    assert model is network and (x == images).all() and (x_val == images).all()
    assert list(y) == list(y_val) == list(LABELS)
    assert (fine.LEARNING_RATE, fine.WEIGHT_DECAY, fine.EPOCHS, first_epoch) == (1e-5, 0, 5, 2)
    assert (of_head.OPTIMIZER, fine.OPTIMIZER) == ("sgd", "adam")
    assert (of_head.LEARNING_RATE, of_head.WEIGHT_DECAY, of_head.EPOCHS) == (0.1, 0.01, 2)


@pytest.mark.parametrize("changes", [dict(EPOCHS=3, FINE_TUNE=1), dict(EPOCHS=2, FINE_TUNE=0)])
def test_no_fine_tuning_if_it_is_0_or_ctrl_c_ended_the_head_s_training(
        settings, narrow, tmp_path, trainings, changes):
    train_pretrained(settings, tmp_path, **changes)
    assert len(trainings) == 1


SMALL = dict(MODEL="mobilenet_v2", IMAGE_SIZE=32, BATCH_SIZE=64, EPOCHS=2)


@pytest.fixture
def few_digits(monkeypatch):
    """A data set of 200 digits, and no answers without a network: half of the time."""
    digits = script.load_digits()
    digits.images, digits.target = digits.images[:200], digits.target[:200]
    monkeypatch.setattr(script, "load_digits", lambda: digits)
    monkeypatch.setattr(script, "describe_data", lambda *_: None)


def test_a_whole_run_with_a_pretrained_network(run, narrow, few_digits, tmp_path):
    model, history, _ = run(**SMALL)
    folder = tmp_path / "outputs" / "digits"
    metrics = assert_complete(folder, 2, FILES - {"learned_features.png", "try_it.html"})
    assert metrics["settings"]["MODEL"] == "mobilenet_v2" and len(history) == 2
    loaded, about = script.load_trained_model(folder, "digits")
    images = noise(4, 8, 8, 1)
    assert loaded.name == "mobilenet_v2" and about["class_names"] == list("0123456789")
    assert np.allclose(script.predict(loaded, images), script.predict(model, images), atol=1e-6)


def test_a_run_cut_off_in_fine_tuning_goes_on_there(
        run, narrow, few_digits, no_pictures, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        def fail(_, epoch, logs=None):
            assert epoch < 3

        patch.setattr(script.callbacks.TerminateOnNaN, "on_epoch_begin", fail)
        with pytest.raises(AssertionError):
            run(FINE_TUNE=2, **SMALL)
    assert "Epoch 3/4" in capsys.readouterr().out
    [table] = tmp_path.glob("outputs/*unfinished*/resume/history.csv")
    rows = table.read_text().splitlines()
    model, history, _ = run(RESUME=True, FINE_TUNE=2, **SMALL)
    printed = capsys.readouterr().out
    assert "Epoch 4/4" in printed and "Epoch 3/4" not in printed and "Epoch 2/" not in printed
    written = (tmp_path / "outputs/digits/history.csv").read_text().splitlines()
    assert written[:4] == rows and list(history["epoch"]) == [0, 1, 2, 3]
    assert history["val_loss"][3] == pytest.approx(history["val_loss"][2], rel=0.05)
    assert 1e-9 < history["learning_rate"][2] <= 1e-5, "it rises and falls once more"
    assert history["learning_rate"][3] == pytest.approx(0, abs=1e-9)


def test_a_pretrained_network_without_weights_is_one_sentence(settings, capsys):
    with one_sentence(capsys, "models/resnet50", "KERAS_HOME", "--model cnn"):
        script.build_pretrained((24, 24, 3), 4, settings(MODEL="resnet50"))


# Chapter 9: the saved network and the file for phones


@pytest.fixture
def network(settings):
    keras.utils.set_random_seed(0)
    return script.build_cnn(noise(60, 12, 10, 3), 4, settings(FILTERS=8, DENSE_UNITS=16))


def test_a_saved_network_comes_back_with_its_names(settings, network, tmp_path):
    images = noise(60, 12, 10, 3)
    names = ["ant", "bee", "猫", "d"]
    about = script.save_model(network, images, names, "my/pets", tmp_path)
    loaded, found = script.load_trained_model(tmp_path, "my/pets")
    assert found == about and found["class_names"] == names
    assert found["dataset"] == script.full_name("my/pets") != "my/pets"
    assert found["white_on_black"] is False and found["versions"] == script.VERSIONS
    assert (tmp_path / "labels.txt").read_text("utf-8").splitlines() == names
    assert np.allclose(script.predict(loaded, images), script.predict(network, images), atol=1e-6)


@pytest.mark.parametrize("broken", ["model.keras", "model.json"])
def test_a_broken_network_is_one_sentence(network, tmp_path, capsys, broken):
    script.save_model(network, noise(60, 12, 10, 3), list("abcd"), "my/pets", tmp_path)
    about = json.loads((tmp_path / "model.json").read_text())
    about["versions"] = {"keras": "0.1"}
    (tmp_path / "model.json").write_text(json.dumps(about))
    (tmp_path / broken).write_text("broken")
    saved_with = "0.1" if broken == "model.keras" else "unknown versions"
    with one_sentence(capsys, str(tmp_path), saved_with, "--dataset my/pets"):
        script.load_trained_model(tmp_path, "my/pets")


def test_the_phone_file_answers_as_keras_with_half_of_the_bytes(network, tmp_path):
    images = noise(60, 12, 10, 3)
    script.write_phone_model(network, tmp_path)
    path = tmp_path / "model.tflite"
    ask = script.tf.lite.Interpreter(str(path)).get_signature_runner()
    [(name, asked)] = ask.get_input_details().items()
    assert list(asked["shape"]) == [1, 12, 10, 3] and asked["dtype"] == np.float32
    for image, expected in zip(images, network.predict(images, verbose=0)):
        [answer] = ask(**{name: image[np.newaxis].astype("float32")}).values()
        assert np.abs(answer - expected).max() < 0.01
    assert path.stat().st_size < 3 * network.count_params() + 12_000


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_phone_file_that_fails_is_a_warning(network, tmp_path, capsys, monkeypatch, is_begun):
    def fail(path, **_):
        if is_begun:
            path.write_bytes(b"half of it")
        raise RuntimeError("a reason\n" * 99)

    monkeypatch.setattr(network, "export", fail)
    script.write_phone_model(network, tmp_path)
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("Warning: ") and "a reason a reason" in said and len(said) < 250
    assert not (tmp_path / "model.tflite").exists()
