"""model.tflite: its answers, its size, the class names in it, and what happens if it can't be made.
"""

import os
import sys
import tempfile
import zipfile

import numpy as np
import pytest
from sklearn.datasets import load_digits

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
NAMES = ["zéro", "o\nne", "two\r\n2", "<img src=x onerror=alert(1)>", "4", "5", "6", "7", "日本", "9 \u2028 9"]
CLEANED = ["zéro", "o ne", "two 2", "<img src=x onerror=alert(1)>", "4", "5", "6", "7", "日本", "9   9"]


@pytest.fixture(scope="session")
def part():
    """The script; its PRECISION is float32."""
    import image_recognition_cnn as script

    return script


@pytest.fixture(scope="session")
def digits():
    """Images (1797, 8, 8, 1) uint8 and labels (1797,)."""
    images, labels = load_digits(return_X_y=True)
    return (images * 255 / 16).round().astype("uint8").reshape(-1, 8, 8, 1), labels


def layers_of_the_script(images):
    """The script's layers for digits."""
    from keras import layers

    normalization = layers.Normalization()
    normalization.adapt(images)
    found = [layers.Input((8, 8, 1)), layers.RandomTranslation(1 / 8, 1 / 8, fill_mode="constant"),
             layers.RandomFlip("horizontal"), normalization,
             layers.Conv2D(8, 2, activation="relu", use_bias=False, trainable=False, name="whitening")]
    for number, filters in enumerate((32, 64), 1):
        found += [layers.Conv2D(filters, 3, padding="same", use_bias=False), layers.MaxPooling2D(2),
                  layers.BatchNormalization(momentum=0.9), layers.ReLU(),
                  layers.Conv2D(filters, 3, padding="same", use_bias=False),
                  layers.BatchNormalization(momentum=0.9), layers.ReLU(name=f"block_{number}")]
    return found + [layers.Flatten(), layers.Dense(128, "relu"), layers.Dropout(0.2),
                    layers.Dense(10, "softmax", dtype="float32")]


def trained(images, labels, epochs):
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(layers_of_the_script(images))
    model.compile(keras.optimizers.Adam(0.004), "sparse_categorical_crossentropy")
    model.fit(images[:1400], labels[:1400], epochs=epochs, batch_size=32, verbose=0)
    probabilities = model.predict(images[1400:], verbose=0)
    assert (probabilities.argmax(axis=1) == labels[1400:]).mean() > 0.5, "even answers would prove nothing"
    assert probabilities.max(axis=1).mean() > 0.5
    return model


@pytest.fixture(scope="session")
def model(digits):
    return trained(*digits, epochs=3)


@pytest.fixture(scope="session")
def phone_file(part, model, digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("phone") / "model.tflite"
    assert part.write_phone_model(model, NAMES, digits[0][1400:], path)
    return path


def test_writing_is_quiet_and_leaves_nothing_behind(part, model, digits, tmp_path, monkeypatch, capfd):
    (tmp_path / "temporary").mkdir()
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    capfd.readouterr()
    assert part.write_phone_model(model, NAMES, digits[0][1400:], tmp_path / "results" / "model.tflite")
    printed = capfd.readouterr()
    assert printed.err == ""
    assert printed.out.count("\n") == 1 and "100 of 100" in printed.out and "0.00" in printed.out
    assert sorted(os.listdir(tmp_path / "results")) == ["labels.txt", "model.tflite"]
    left = [name for name in os.listdir(tmp_path / "temporary") if not name.startswith("__autograph")]
    assert left == [], "TensorFlow removes its own __autograph files when the process ends"
    os.write(2, b"stream 2 works again\n")
    assert "works again" in capfd.readouterr().err


def answers(interpreter, images):
    """Probabilities (number, classes) of raw pixels (number, height, width, channels)."""
    interpreter.allocate_tensors()
    [asked], [given] = interpreter.get_input_details(), interpreter.get_output_details()
    assert asked["dtype"] == np.float32 and list(asked["shape_signature"]) == [1, 8, 8, 1]
    found = []
    for image in images:
        interpreter.set_tensor(asked["index"], np.float32(image[None]))
        interpreter.invoke()
        found.append(interpreter.get_tensor(given["index"])[0])
    return np.array(found)


def assert_as_keras(found, model, images):
    expected = model.predict(images, verbose=0)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert np.abs(found - expected).max() < 0.01


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter")
def test_answers_are_those_of_keras(model, phone_file, digits):
    import tensorflow as tf

    images = digits[0][-300:]
    assert_as_keras(answers(tf.lite.Interpreter(str(phone_file)), images), model, images)


def test_answers_of_ai_edge_litert_are_those_of_keras(model, phone_file, digits):
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    images = digits[0][-300:]
    assert_as_keras(answers(litert.Interpreter(str(phone_file)), images), model, images)


def test_weights_take_half_the_space(model, phone_file):
    in_32_bits = 4 * model.count_params()
    assert 0.45 * in_32_bits < phone_file.stat().st_size < 0.6 * in_32_bits


def test_class_names_are_inside_and_beside(phone_file):
    with zipfile.ZipFile(phone_file) as file:
        assert file.namelist() == ["labels.txt"]
        assert file.infolist()[0].compress_type == zipfile.ZIP_STORED, "MediaPipe reads no other"
        inside = file.read("labels.txt")
    assert inside.decode("utf-8").splitlines() == CLEANED
    assert phone_file.with_name("labels.txt").read_bytes() == inside


def test_metadata_names_the_labels_and_leaves_the_pixels(phone_file):
    """The fields are looked up by hand, by their places in MediaPipe's metadata_schema.fbs."""
    import flatbuffers
    from tensorflow.lite.tools import flatbuffer_utils

    file = flatbuffer_utils.convert_bytearray_to_object(bytearray(phone_file.read_bytes()))
    [number] = [entry.buffer for entry in file.metadata if entry.name == b"TFLITE_METADATA"]
    data = bytes(bytearray(file.buffers[number].data))
    assert data[4:8] == b"M001"

    def table(position):
        return flatbuffers.table.Table(data, position)

    def only(parent, place):
        """The one table in the list at this place."""
        offset = parent.Offset(4 + 2 * place)
        assert parent.VectorLen(offset) == 1
        return table(parent.Indirect(parent.Vector(offset)))

    network = only(table(int.from_bytes(data[:4], "little")), 3)
    step = only(only(network, 2), 4)
    scaling = table(step.Indirect(step.Pos + step.Offset(6)))
    values = [np.frombuffer(data, "<f4", 1, scaling.Vector(scaling.Offset(4 + 2 * place)))[0] for place in (0, 1)]
    assert data[step.Pos + step.Offset(4)] == 1 and values == [0, 1]
    labels = only(only(network, 3), 6)
    assert labels.String(labels.Pos + labels.Offset(4)) == b"labels.txt"
    assert data[labels.Pos + labels.Offset(8)] == 2


def assert_refused(part, model, images, path, capfd, word):
    capfd.readouterr()
    assert part.write_phone_model(model, NAMES, images, path) is False
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed
    assert "model.tflite" in printed.err and word in printed.err
    assert os.listdir(path.parent) == []


def test_failed_export_is_one_sentence(part, model, digits, tmp_path, monkeypatch, capfd):
    def export(path, **options):
        path.write_bytes(b"half a file")
        print("C++ would write this", file=sys.stderr)
        raise RuntimeError("no such operation\n" + "and a page of details\n" * 50)

    monkeypatch.setattr(model, "export", export)
    assert_refused(part, model, digits[0], tmp_path / "model.tflite", capfd, "no such operation")


def test_wrong_answers_are_not_kept(part, model, digits, tmp_path, monkeypatch, capfd):
    import keras

    other = keras.Sequential(layers_of_the_script(digits[0]))
    monkeypatch.setattr(model, "export", other.export)
    assert_refused(part, model, digits[0], tmp_path / "model.tflite", capfd, "largest difference")


def test_answers_that_are_no_numbers_are_not_kept(part):
    expected = np.full((3, 2), 0.5, "float32")
    assert "largest difference" in part.compare_answers(expected, expected * np.nan)
    assert part.compare_answers(expected, expected) == ""


def test_a_near_tie_may_fall_the_other_way_but_not_many(part):
    expected = np.tile(np.array([0.5001, 0.4999], "float32"), (40, 1))
    turned = expected.copy()
    turned[:2] = turned[:2, ::-1]
    assert part.compare_answers(expected, turned) == ""
    assert "0 of 40" in part.compare_answers(expected, expected[:, ::-1]), "a flat answer hides a wrong file"


def test_a_large_difference_is_a_fault_though_the_class_is_the_same(part):
    expected = np.array([[0.9, 0.1]], "float32")
    assert "1 of 1" in part.compare_answers(expected, np.array([[0.8, 0.2]], "float32"))


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(part, model, digits, tmp_path, monkeypatch, capfd, precision):
    import keras

    monkeypatch.setattr(part, "PRECISION", precision)
    keras.config.set_dtype_policy(precision)
    try:
        mixed = keras.Sequential(layers_of_the_script(digits[0]))
        mixed.set_weights(model.get_weights())
        capfd.readouterr()
        kept = part.write_phone_model(mixed, NAMES, digits[0][1400:], tmp_path / "model.tflite")
    finally:
        keras.config.set_dtype_policy("float32")
    assert kept and capfd.readouterr().err == ""
    assert {layer.compute_dtype for layer in mixed.layers} != {"float32"}, "the model itself stays as it was"


def test_pretrained_network(part, tmp_path, capfd):
    import keras
    from keras import layers

    whole = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, include_top=False, weights=None)
    base = keras.Model(whole.input, whole.get_layer("block_2_add").output)  # every kind of layer
    model = keras.Sequential([
        layers.Input((16, 16, 3)), layers.RandomTranslation(0.1, 0.1), layers.RandomFlip("horizontal"),
        layers.Resizing(32, 32), layers.Rescaling(1 / 127.5, -1), base, layers.GlobalAveragePooling2D(),
        layers.Dropout(0.2), layers.Dense(3, "softmax")])
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), "uint8")
    model.predict(images, verbose=0)
    capfd.readouterr()
    assert part.write_phone_model(model, ["a", "b", "c"], images, tmp_path / "model.tflite")
    printed = capfd.readouterr()
    assert printed.err == "" and "20 of 20" in printed.out


def test_it_is_checked_with_images_of_all_classes(part, model, tmp_path, monkeypatch):
    seen = []
    for name in ("export_in_16_bits", "add_metadata", "add_labels"):
        monkeypatch.setattr(part, name, lambda *_: None)

    def answers_of_keras(_, images):
        seen.extend(images)
        return model.predict(images, verbose=0)

    monkeypatch.setattr(part, "phone_answers", answers_of_keras)
    sorted_by_class = np.repeat(np.arange(200, dtype="uint8"), 3)[:, None, None, None]
    sorted_by_class = sorted_by_class * np.ones((1, 8, 8, 1), "uint8")
    assert part.write_phone_model(model, list("0123456789"), sorted_by_class, tmp_path / "m.tflite")
    assert len(seen) == part.PHONE_IMAGES and np.min(seen) == 0 and np.max(seen) == 199
