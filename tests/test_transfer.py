"""Transfer learning with random weights: no network, no data that must be downloaded.
"""
import pathlib

import pytest

import image_recognition_cnn as script

SCRIPT = script.__file__
NETWORKS = ["mobilenet_v2", "vgg16", "resnet50"]
np, keras = script.np, script.keras
layers = keras.layers


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Settings of a short run; each test changes what it needs."""
    values = dict(
        DATASET="digits", MODEL="mobilenet_v2", PRETRAINED_SIZE=32, FINE_TUNE=0, FINE_TUNE_RATE=1e-4,
        AUGMENTATION=True, MIRROR=False, SHIFT=1, DROPOUT=0.2, EPOCHS=2, BATCH_SIZE=8, OPTIMIZER="adam",
        LEARNING_RATE=0.004, WEIGHT_DECAY=0.25, HEAD_LEARNING_RATE=0.002, HEAD_WEIGHT_DECAY=5.0,
        LABEL_SMOOTHING=0.2, SCHEDULE="cosine",
        PRECISION="float32", SEED=0, RESUME=False)
    for name, value in values.items():
        monkeypatch.setattr(script, name, value)
    keras.utils.set_random_seed(0)
    return lambda **changes: [monkeypatch.setattr(script, n, v) for n, v in changes.items()]


def images_and_labels(number=24, channels=3, classes=3, size=8):
    """Noise around one colour for each class."""
    random = np.random.default_rng(0)
    labels = np.arange(number) % classes
    middle = 40 + 80 * labels[:, None, None, None]
    images = middle + random.integers(-20, 20, (number, size, size, channels))
    return images.astype("uint8"), labels


def base_of(model):
    return model.layers[-5]


# The first layers of each network, with all kinds of layers that it has: the whole takes long.
LAST_LAYERS = {"mobilenet_v2": "block_2_add", "vgg16": "block2_pool", "resnet50": "conv2_block2_out"}


@pytest.fixture(scope="session")
def networks():
    """Each kind of network, built once with random weights: they take seconds to build."""
    built = {}

    def get(name):
        if name not in built:
            original = {"mobilenet_v2": keras.applications.MobileNetV2, "vgg16": keras.applications.VGG16,
                        "resnet50": keras.applications.ResNet50}[name]
            built[name] = original(input_shape=(32, 32, 3), include_top=False, weights=None)
        return built[name]
    return get


@pytest.fixture
def quick_base(monkeypatch, networks):
    """pretrained_base without a build; its weights are those of one random network per kind."""
    def first_layers(weights):
        whole = networks(script.MODEL)
        return keras.Model(whole.input, whole.get_layer(LAST_LAYERS[script.MODEL]).output)

    monkeypatch.setattr(script, "pretrained_base", first_layers)
    monkeypatch.setattr(script, "draw_curves", lambda *_: None)


@pytest.mark.parametrize("name", NETWORKS)
def test_preprocessing_equals_keras(name, settings):
    settings(MODEL=name)
    module = {"mobilenet_v2": keras.applications.mobilenet_v2, "vgg16": keras.applications.vgg16,
              "resnet50": keras.applications.resnet50}[name]
    colour = np.random.default_rng(1).uniform(0, 255, (2, 6, 5, 3)).astype("float32")
    layers_of_it = keras.Sequential([keras.Input((6, 5, 3)), *script.preprocessing_layers(3)])
    expected = module.preprocess_input(colour.copy())
    np.testing.assert_allclose(layers_of_it.predict(colour, verbose=0), expected, atol=2e-5)
    grey = colour[..., :1]
    layers_of_it = keras.Sequential([keras.Input((6, 5, 1)), *script.preprocessing_layers(1)])
    expected = module.preprocess_input(np.repeat(grey, 3, axis=3))
    np.testing.assert_allclose(layers_of_it.predict(grey, verbose=0), expected, atol=2e-5)
    assert layers_of_it.trainable_weights == []


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name,channels", [("mobilenet_v2", 1), ("vgg16", 3), ("resnet50", 1)])
def test_train_and_save(name, channels, settings, quick_base, saved_models, tmp_path):
    settings(MODEL=name, MIRROR=channels == 3)
    x, y = images_and_labels(channels=channels)
    model = script.build_pretrained(x.shape[1:], 3)
    before = [np.array(weight) for weight in base_of(model).weights]
    history = script.train_pretrained(model, x, y, x[:6], y[:6], "noise", make_folder(tmp_path))
    assert list(history["epoch"]) == [0, 1]
    assert history["learning_rate"].max() <= 0.002
    for old, new in zip(before, base_of(model).weights):
        np.testing.assert_array_equal(old, new)
    assert len(model.trainable_weights) == 2  # kernel and bias of the head
    model.save(saved_models / f"{name}.keras")
    np.savez(saved_models / f"{name}.npz", x=x, answers=model.predict(x, verbose=0))


def make_folder(path):
    (path / "resume").mkdir()
    return path


def test_saved_models_load_without_code_of_the_script(saved_models):
    """All three in safe mode, which runs no code from the file."""
    assert keras.saving.get_custom_objects() == {}, "they would have to be there in other programs"
    paths = sorted(saved_models.glob("*.keras"))
    if not paths:
        pytest.skip("run it together with test_train_and_save")
    spread = 0
    for path in paths:
        model = keras.models.load_model(path, safe_mode=True)
        data = np.load(path.with_suffix(".npz"))
        answers = model.predict(data["x"], verbose=0)
        assert answers.dtype == "float32"
        spread = max(spread, np.ptp(answers, axis=0).max())
        np.testing.assert_allclose(answers, data["answers"], atol=1e-5)
    assert spread > 1e-4, "no answer depends on the picture"


def test_features_and_head_equal_the_whole(quick_base, monkeypatch, settings, tmp_path):
    """Also: each picture is looked at once, and once more mirrored."""
    settings(MIRROR=True)
    x, y = images_and_labels()
    model = script.build_pretrained(x.shape[1:], 3)
    seen = []
    original_train = script.fit
    def spy(head, *arguments, **options):
        seen.append((head, *arguments))
        return original_train(head, *arguments, **options)
    monkeypatch.setattr(script, "fit", spy)
    script.train_pretrained(model, x, y, x[:6], y[:6], "noise", make_folder(tmp_path))
    head, features, labels, val_features = seen[0][:4]
    assert features.shape == (48, 24) and features.dtype == "float16"
    np.testing.assert_array_equal(labels, np.concatenate([y, y]))
    expected = model.predict(np.concatenate([x, x[:, :, ::-1]]), verbose=0)
    np.testing.assert_allclose(head.predict(features, verbose=0), expected, atol=2e-3)  # float16
    np.testing.assert_allclose(head.predict(val_features, verbose=0), expected[:6], atol=2e-3)


def test_fine_tuning_keeps_batch_normalization(quick_base, settings, tmp_path):
    settings(FINE_TUNE=1)
    x, y = images_and_labels()
    model = script.build_pretrained(x.shape[1:], 3)
    base = base_of(model)
    before = {weight.path: np.array(weight) for weight in base.weights}
    history = script.train_pretrained(model, x, y, x[:6], y[:6], "noise", make_folder(tmp_path))
    assert list(history["epoch"]) == [0, 1, 2]
    changed = [weight.path for weight in base.weights
               if not np.array_equal(before[weight.path], np.array(weight))]
    assert changed
    first = len(base.layers) * 2 // 3
    may_change = [weight.path for layer in base.layers[first:] for weight in layer.weights
                  if not isinstance(layer, layers.BatchNormalization)]
    assert set(changed) <= set(may_change)
    assert len(changed) > len(may_change) // 2


def test_resume_goes_on(quick_base, settings, tmp_path, monkeypatch):
    """Killed in fine-tuning: the head is not trained again, and the whole goes on from its checkpoint."""
    x, y = images_and_labels()
    folder = make_folder(tmp_path)
    settings(FINE_TUNE=1)
    model = script.build_pretrained(x.shape[1:], 3)
    first = script.train_pretrained(model, x, y, x[:6], y[:6], "noise", folder)
    weights = [np.array(weight) for weight in model.weights if "seed" not in weight.path]
    settings(RESUME=True)
    keras.utils.set_random_seed(5)
    again = script.build_pretrained(x.shape[1:], 3)
    for weight in again.weights:
        if weight.dtype == "float32":
            weight.assign(weight + 0.01)  # all of it must come from the checkpoint
    history = script.train_pretrained(again, x, y, x[:6], y[:6], "noise", folder)
    assert list(history["epoch"]) == [0, 1, 2]
    np.testing.assert_allclose(history["loss"], first["loss"])
    for old, new in zip(weights, [w for w in again.weights if "seed" not in w.path]):
        np.testing.assert_array_equal(old, new)


def sentence_of(capfd, action):
    with pytest.raises(SystemExit) as end:
        action()
    assert end.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "image_recognition_cnn.py:" in line]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """An empty home without a network; the proxy of this address refuses every connection."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "models").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network(name, settings, keras_home, capfd, monkeypatch):
    settings(MODEL=name, PRETRAINED_SIZE=96)
    said = sentence_of(capfd, lambda: script.build_pretrained((8, 8, 3), 3))
    address, path, megabytes, _ = script.weight_file()
    for word in (address, str(path), f"{megabytes} MB", "--model cnn"):
        assert word in said
    assert path.parent == keras_home / "models"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_bad_copy_is_not_deleted(name, settings, keras_home, capfd):
    settings(MODEL=name, PRETRAINED_SIZE=96)
    _, path, _, _ = script.weight_file()
    path.write_bytes(b"half of a download")
    said = sentence_of(capfd, lambda: script.build_pretrained((8, 8, 3), 3))
    assert str(path) in said and "--model cnn" in said
    assert path.read_bytes() == b"half of a download"


def test_a_good_copy_is_taken(settings, keras_home, networks):
    """A file of the right name in Keras' folder is found without a network."""
    settings(PRETRAINED_SIZE=96)
    _, path, _, _ = script.weight_file()
    networks("mobilenet_v2").save(path)  # .h5: Keras 2's format, as Keras' own file
    expected = networks("mobilenet_v2").get_weights()
    base = script.pretrained_base("imagenet")
    for old, new in zip(expected, base.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_addresses_are_those_of_keras(settings, keras_home, monkeypatch):
    """The table of files against what Keras itself asks for."""
    asked = []
    def get_file(name, origin, cache_subdir=None, file_hash=None):
        asked.append((origin, cache_subdir, name, file_hash))
        raise OSError
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    monkeypatch.setattr(script, "stop", lambda sentence: None)
    for name in NETWORKS:
        settings(MODEL=name, PRETRAINED_SIZE=128)
        script.pretrained_base("imagenet")
        address, path, _, md5 = script.weight_file()
        assert asked[-1] == (address, "models", path.name, md5)


def test_sizes_without_weights(settings, capfd):
    settings(PRETRAINED_SIZE=100)
    assert "160" in sentence_of(capfd, script.check_pretrained_size)
    settings(MODEL="vgg16")
    script.check_pretrained_size()


def test_chapter_is_short():
    text = pathlib.Path(SCRIPT).read_text("utf-8")
    chapter = text.split("# %% Transfer learning")[1].split("# %%")[0].strip()
    assert chapter.count("\n") + 1 <= 60
