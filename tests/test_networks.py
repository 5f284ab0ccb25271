"""Transfer learning with random weights (the real ones are a download), and the file for phones."""

import numpy as np
import pytest

import image_recognition_cnn as script
from helpers import one_sentence

keras = script.keras
RNG = np.random.default_rng(0)


def pretrained(settings, model="mobilenet_v2", size=96, channels=3, **changes):
    keras.utils.set_random_seed(0)
    found = settings(MODEL=model, IMAGE_SIZE=size, **changes)
    return script.build_pretrained((24, 20, channels), 4, found, weights=None)


@pytest.mark.parametrize("model, size", [("mobilenet_v2", 96), ("vgg16", 32), ("resnet50", 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pretrained_network_gets_its_own_numbers(settings, tmp_path, model, size, channels):
    network = pretrained(settings, model, size, channels)
    images = RNG.integers(0, 256, (3, 24, 20, channels)).astype("uint8")
    features, head = network.layers
    base = next(layer for layer in features.layers if isinstance(layer, keras.Model))
    large = keras.layers.Resizing(size, size)(np.repeat(images, 3 // channels, 3).astype("float32"))
    wanted = script.PRETRAINED[model][0].preprocess_input(np.array(large))
    maps = base.predict(wanted, verbose=0).mean(axis=(1, 2))
    spread = maps - maps.mean(axis=1, keepdims=True)
    spread = spread / np.sqrt(spread.var(axis=1, keepdims=True) + 1e-3)
    found = features.predict(images, verbose=0)
    assert np.abs(found - spread).max() < 1e-3 * max(1, np.abs(spread).max())
    answers = network.predict(images, verbose=0)
    assert np.allclose(answers.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(head.predict(found, verbose=0), answers, atol=1e-5)
    network.save(tmp_path / "model.keras")  # loaded in safe mode
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.allclose(loaded.predict(images, verbose=0), answers, atol=1e-6)


def test_only_the_head_learns_then_the_last_third(settings, tmp_path, monkeypatch):
    # A tenth of the width: the same layers, but fast.
    monkeypatch.setattr(script, "from_keras", lambda load, place, **options: load(
        **options, alpha=0.1))
    changes = dict(EPOCHS=2, FINE_TUNE=1, MIRROR=True, BATCH_SIZE=4)
    network = pretrained(settings, **changes)
    features, head = network.layers
    base = next(layer for layer in features.layers if isinstance(layer, keras.Model))
    before = [np.array(weight) for weight in base.weights]
    images = RNG.integers(0, 256, (12, 24, 20, 3)).astype("uint8")
    labels = np.arange(12) % 4
    seen = []
    train = script.train
    monkeypatch.setattr(script, "train", lambda *args: seen.append(args) or train(*args))
    history = script.train_pretrained(
        network, images, labels, images, labels, tmp_path, settings(MODEL="mobilenet_v2", **changes))
    assert seen[0][0] is head and len(seen[0][1]) == 24  # MIRROR: each picture twice
    assert list(seen[0][2]) == [*labels, *labels]
    assert list(history["epoch"]) == [0, 1, 2] and seen[1][6].LEARNING_RATE == 1e-5
    learning = {layer.name for layer in base.layers if layer.trainable_weights}
    last_third = base.layers[len(base.layers) * 2 // 3:]
    assert learning and learning <= {layer.name for layer in last_third}
    assert not any("bn" in name.lower() for name in learning)
    changed = [not np.array_equal(old, new) for old, new in zip(before, base.weights)]
    first_weights = sum(len(layer.weights) for layer in base.layers[:len(base.layers) * 2 // 3])
    assert any(changed[first_weights:]) and not any(changed[:first_weights])


def test_a_pretrained_network_without_weights(settings, capsys):
    with one_sentence(capsys, "models/resnet50", "KERAS_HOME", "--model cnn"):
        script.build_pretrained((24, 24, 3), 4, settings(MODEL="resnet50"))


def test_the_phone_file_answers_as_keras(settings, tmp_path, capsys, monkeypatch):
    images = RNG.integers(0, 256, (60, 12, 10, 3)).astype("uint8")
    network = script.build_cnn(images, 4, settings(FILTERS=8, DENSE_UNITS=16))
    script.write_phone_model(network, tmp_path)
    ask = script.tf.lite.Interpreter(str(tmp_path / "model.tflite")).get_signature_runner()
    [name] = ask.get_input_details()
    for image, expected in zip(images, network.predict(images, verbose=0)):
        [answer] = ask(**{name: image[np.newaxis].astype("float32")}).values()
        assert np.abs(answer - expected).max() < 0.01
    (tmp_path / "model.tflite").write_bytes(b"")
    monkeypatch.setattr(network, "export", lambda *_, **__: 1 / 0)
    script.write_phone_model(network, tmp_path)
    assert "There is no model.tflite: division by zero" in capsys.readouterr().err
    assert not (tmp_path / "model.tflite").exists()
