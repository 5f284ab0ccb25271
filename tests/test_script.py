"""Runs the script as a user does and looks at what comes out. Needs no network and no real data.

`digits` ships with scikit-learn. For Fashion-MNIST the tests put files of made pictures where Keras
looks for a copy; for MNIST and CIFAR-10, whose copies Keras checks by their hash, tests/made_data/
replaces Keras' loader by one that makes pictures of the same shape.
"""

import csv
import gzip
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "image_recognition_cnn.py"
PICTURES = ["accuracy_loss_curves.png", "confident_mistakes.png", "confusion_matrix.png", "learned_features.png",
            "sample_predictions.png", "where_it_looks.png"]
FILES = sorted(PICTURES + ["model.keras", "metrics.json", "history.csv", "classification_report.txt"])


def command(folder, *arguments, **variables):
    """The arguments of subprocess for a run that writes to folder and reaches no network."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    nowhere = "http://127.0.0.1:9"
    environment |= dict(KERAS_HOME=str(folder / "keras"), http_proxy=nowhere, https_proxy=nowhere, no_proxy="")
    environment |= dict(HTTP_PROXY=nowhere, HTTPS_PROXY=nowhere, NO_PROXY="", **variables)
    return dict(args=[sys.executable, str(SCRIPT), *map(str, arguments)], cwd=folder, env=environment, text=True)


def run(folder, *arguments, **variables):
    """A whole run of the script; (folder / "keras") is made so that Keras uses it as its home."""
    (folder / "keras").mkdir(exist_ok=True)
    finished = subprocess.run(**command(folder, *arguments, **variables), capture_output=True, timeout=250)
    # "failed call to cuInit" is TensorFlow's honest word on a machine with CUDA's libraries but no GPU.
    finished.stderr = "".join(line for line in finished.stderr.splitlines(True) if "cuInit" not in line)
    return finished


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="session")
def default_run(tmp_path_factory):
    """The run with no arguments at all, as the README's first command makes it."""
    folder = tmp_path_factory.mktemp("default")
    return folder, run(folder)


SHORT = ("--epochs", 2, "--filters", 8, 16)


def assert_complete(folder, finished, classes=10, epochs=None):
    """All the files are there, and they agree with one another."""
    assert finished.returncode == 0, finished.stderr
    assert sorted(file.name for file in folder.iterdir()) == FILES
    assert not list(folder.parent.glob("*.unfinished"))
    import matplotlib.pyplot as plt

    for name in PICTURES:
        picture = plt.imread(folder / name)[..., :3]
        assert min(picture.shape[:2]) > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50, name
    found = metrics(folder)
    matrix = np.array(found["confusion_matrix"])
    assert matrix.shape == (classes, classes)
    assert np.trace(matrix) / matrix.sum() == pytest.approx(found["test_accuracy"])
    assert list(matrix.sum(axis=1)) == [scores["support"] for scores in list(found["classes"].values())[:classes]]
    assert f"{found['test_accuracy']:.4f}" in (folder / "classification_report.txt").read_text(encoding="utf-8")
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(len(rows)))
    assert found["epochs_trained"] == len(rows) == (epochs or found["settings"]["EPOCHS"])
    assert float(rows[-1]["val_accuracy"]) == pytest.approx(found["validation_accuracy"])


def test_default_run_is_complete_accurate_and_quiet(default_run):
    folder, finished = default_run
    assert_complete(folder / "outputs" / "digits", finished)
    assert metrics(folder / "outputs" / "digits")["test_accuracy"] >= 0.97
    assert finished.stderr == "", "TensorFlow's start-up notes, or a warning nobody looked at"
    assert "Total params" in finished.stdout and "macro avg" in finished.stdout
    assert str(folder / "outputs" / "digits") in finished.stdout.splitlines()[-1]


def test_saved_model_takes_raw_pixels_and_gives_the_same_accuracy(default_run):
    import keras
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    folder = default_run[0] / "outputs" / "digits"
    images, labels = load_digits(return_X_y=True)
    images = (images * 255 / 16).round().astype("uint8").reshape(-1, 8, 8, 1)
    _, x_test, _, y_test = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    model = keras.models.load_model(folder / "model.keras")
    assert (model.predict(x_test, verbose=0).argmax(1) == y_test).mean() == metrics(folder)["test_accuracy"]
    scaled = model.predict(x_test / 255, verbose=0).argmax(1)
    assert (scaled == y_test).mean() < 0.5, "pixels that were scaled already would not be noticed here"


def test_first_layer_whitens_and_the_others_start_by_handing_on(tmp_path):
    """What comes out of the first layer varies independently and by as much, and so does what comes after."""
    import keras
    from sklearn.datasets import load_digits

    finished = run(tmp_path, "--epochs", 1, "--learning-rate", 1e-9, "--filters", 16)
    assert finished.returncode == 0, finished.stderr
    layers = keras.models.load_model(tmp_path / "outputs" / "digits" / "model.keras").layers
    images = (load_digits().images * 255 / 16).reshape(-1, 8, 8, 1)
    normalized = next(layer for layer in layers if isinstance(layer, keras.layers.Normalization))(images)
    whitening, first, second = [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]
    positive = np.array(whitening(normalized))[..., :4]
    numbers = positive - np.array(whitening(normalized))[..., 4:]  # ReLU parted them by sign
    assert np.allclose(np.cov(numbers.reshape(-1, 4), rowvar=False), np.eye(4), atol=0.1)
    assert np.allclose(np.array(first(whitening(normalized)))[..., :4], positive, atol=1e-5)
    maps = np.random.default_rng(0).random((2, 3, 3, 16))
    assert np.allclose(np.array(second(maps)), maps, atol=1e-5)


def test_same_seed_same_metrics_and_a_row_for_each_run(tmp_path):
    outcomes, table = [], tmp_path / "outputs" / "experiments.csv"
    for number, seed in enumerate((3, 3, 4, 4), 1):
        flags = ["--dropout", 0.5] if number == 4 else []
        finished = run(tmp_path, "--epochs", 1, "--filters", 8, "--seed", seed, *flags)
        assert_complete(tmp_path / "outputs" / "digits", finished)
        outcome = metrics(tmp_path / "outputs" / "digits")
        del outcome["training_seconds"], outcome["settings"]
        outcomes.append(outcome)
        with open(table, newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["SEED"] for row in rows] == ["3", "3", "4", "4"][:number]
        assert [float(row["test_loss"]) for row in rows] == [outcome["test_loss"] for outcome in outcomes]
        comparisons = re.findall(r"the (last|best) run before had ([\d.]+)%. Changed: (.*)", finished.stdout)
        change = [None, "nothing", "SEED 3 -> 4", "SHIFT unknown -> 1, DROPOUT 0.2 -> 0.5"][number - 1]
        if number == 1:
            assert not comparisons
        else:
            last, best = comparisons
            earlier = [100 * outcome["validation_accuracy"] for outcome in outcomes[:-1]]
            assert (last[0], last[2], best[0]) == ("last", change, "best")
            assert float(last[1]) == pytest.approx(earlier[-1], abs=0.006)
            assert float(best[1]) == pytest.approx(max(earlier), abs=0.006)
        if number == 3:  # as another version of the script, with other columns, would have left it
            for row in rows:
                row["MOMENTUM"] = "0.9"
                del row["SHIFT"]
            with open(table, "w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["test_loss"] != outcomes[2]["test_loss"]
    assert [row["MOMENTUM"] for row in rows] == ["0.9", "0.9", "0.9", "unknown"]
    assert [row["SHIFT"] for row in rows] == ["unknown", "unknown", "unknown", "1"]


def test_fashion_mnist_from_copies_put_where_keras_looks(tmp_path):
    folder = tmp_path / "keras" / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    made = np.random.default_rng(0)
    for part, number in (("train", 400), ("t10k", 100)):
        labels = (np.arange(number) % 10).astype("uint8")
        images = made.integers(0, 60, (number, 28, 28)).astype("uint8")
        for image, label in zip(images, labels):
            image[2 * label: 2 * label + 8] += 180
        for name, header, array in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            with gzip.open(folder / f"{part}-{name}-ubyte.gz", "wb") as file:
                file.write(bytes(header) + array.tobytes())
    finished = run(tmp_path, "--dataset", "fashion_mnist", *SHORT)
    assert_complete(tmp_path / "outputs" / "fashion_mnist", finished)
    assert "Ankle boot" in metrics(tmp_path / "outputs" / "fashion_mnist")["classes"]


@pytest.mark.parametrize("dataset, flags", [
    ("mnist", ["--optimizer", "sgd", "--no-augmentation", "--epochs", 1]),
    ("cifar10", ["--precision", "mixed_bfloat16", "--dropout", 0, "--label-smoothing", 0, "--batch-size", 16,
                 "--epochs", 3]),
])
def test_other_data_sets_and_settings(tmp_path, dataset, flags):
    finished = run(tmp_path, "--dataset", dataset, "--filters", 8, "--output-dir", "a/b", *flags,
                   PYTHONPATH=str(ROOT / "tests" / "made_data"))
    folder = tmp_path / "a" / "b" / dataset
    assert_complete(folder, finished)
    settings = metrics(folder)["settings"]
    if "--no-augmentation" in flags:
        assert settings["AUGMENTATION"] is False and settings["OPTIMIZER"] == "sgd"
        assert settings["LEARNING_RATE"] == 0.1, "the value of LEARNING_RATE that the block gives for sgd"
        assert "RandomTranslation" not in finished.stdout
    else:
        assert settings["PRECISION"] == "mixed_bfloat16" and settings["DROPOUT"] == 0
        assert "RandomTranslation" in finished.stdout
        found = metrics(folder)
        assert found["test_accuracy"] > 0.3, "ten classes of plain colours, and nothing learned"
        sys.path.insert(0, str(ROOT / "tests" / "made_data"))
        from sitecustomize import made
        import keras

        _, (x_test, y_test) = made((32, 32, 3))
        model = keras.models.load_model(folder / "model.keras")
        seen, mirrored = (model.predict(x, verbose=0) for x in (x_test, x_test[:, :, ::-1]))
        right = (seen.argmax(axis=1) == y_test.ravel()).mean()
        assert right == pytest.approx(found["test_accuracy_single_view"], abs=0.02)
        loss, single_loss = (-float(np.log(probabilities[np.arange(100), y_test.ravel()]).mean())
                             for probabilities in ((seen + mirrored) / 2, seen))
        assert found["test_loss"] == pytest.approx(loss, abs=abs(loss - single_loss) / 3)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_failed_download_says_where_a_copy_goes_and_changes_nothing(tmp_path, name):
    earlier = tmp_path / "outputs" / name
    earlier.mkdir(parents=True)
    (earlier / "metrics.json").write_text("an earlier run")
    finished = run(tmp_path, "--dataset", name)
    assert finished.returncode == 2 and "Traceback" not in finished.stderr
    place = {"mnist": "mnist.npz", "fashion_mnist": "fashion-mnist", "cifar10": "cifar-10-batches-py-target_archive"}
    assert str(tmp_path / "keras" / "datasets" / place[name]) in finished.stderr
    assert "https://" in finished.stderr and "--dataset digits" in finished.stderr
    assert contents(earlier) == {"metrics.json": b"an earlier run"}


def digit_pictures(folder, number=12):
    """Write digits 20 times as large, white on black and dark on paper, as people have them; names and labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for name, paint in (("black", lambda x: x * 15), ("paper", lambda x: 225 - x * 12)):
        for i in range(number):
            picture = Image.fromarray(paint(images[i].reshape(8, 8)).astype("uint8")).resize((160, 160))
            picture = ImageOps.expand(picture, 90, picture.getpixel((0, 0)))
            path = folder / f"{name}{i}.png"
            if i % 3 == 0:  # 16 bits
                Image.fromarray(np.asarray(picture).astype("uint16") * 257).save(path)
            elif i % 3 == 1:  # taken with the camera on its side, which the file says
                exif = Image.Exif()
                exif[0x0112] = 6
                picture.rotate(90).save(path, exif=exif)
            elif name == "paper":  # ink on nothing
                black = Image.new("L", picture.size)
                Image.merge("RGBA", [black, black, black, ImageOps.invert(picture)]).save(path)
            else:
                picture.convert("CMYK").save(path, "JPEG")
    return [[f"{name}{i}.png" for i in range(number)] for name in ("black", "paper")], labels[:number]


def test_predict_on_paper_and_on_black(default_run, tmp_path):
    shutil.copytree(default_run[0] / "outputs", tmp_path / "outputs")
    before = contents(tmp_path / "outputs" / "digits")
    (black, paper), labels = digit_pictures(tmp_path)
    (tmp_path / "notes.png").write_text("no picture at all")
    (tmp_path / "folder.png").mkdir()
    hair = Image.new("L", (150, 300))
    ImageDraw.Draw(hair).line((75, 0, 75, 300), 255)
    hair.save(tmp_path / "hair.png")
    finished = run(tmp_path, "--predict", *black, "notes.png", *paper, "missing.jpg", "folder.png", "hair.png")
    assert finished.returncode == 1, "three could not be read"
    assert "Traceback" not in finished.stderr and len(finished.stderr.splitlines()) == 3
    assert all(name in finished.stderr for name in ("notes.png", "missing.jpg", "folder.png"))
    assert re.search(r"hair.png: \d ", finished.stdout)
    for names, taken in ((black, "white on black"), (paper, "dark on white")):
        assert all(f"{name}: taken for {taken}" in finished.stdout for name in names)
        answers = [re.search(rf"{name}: (\d) [\d.]+%, \d [\d.]+%, \d [\d.]+%$", finished.stdout, re.MULTILINE)[1]
                   for name in names]
        assert np.mean(np.array(answers, int) == labels) >= 0.8, answers
    after = contents(tmp_path / "outputs" / "digits")
    assert after.pop("predictions.png")[:4] == b"\x89PNG" and after == before


def test_model_from_a_stranger_runs_no_code(tmp_path, monkeypatch):
    import keras

    monkeypatch.chdir(tmp_path)

    (tmp_path / "outputs" / "digits").mkdir(parents=True)
    code = keras.layers.Lambda(lambda x: [open("owned", "w").close(), x][1])
    keras.Sequential([keras.Input((8, 8, 1)), code]).save(tmp_path / "outputs" / "digits" / "model.keras")
    (tmp_path / "owned").unlink(missing_ok=True)  # Keras ran it here, to know the shape
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    finished = run(tmp_path, "--predict", "a.png")
    assert finished.returncode == 2 and len(finished.stderr.splitlines()) == 1 and "safe" in finished.stderr
    assert not (tmp_path / "owned").exists()


def letters(folder, number=12):
    """A folder of 26 classes of grey 28x28 PNGs, letters at places that differ."""
    random = np.random.default_rng(0)
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        (folder / letter).mkdir(parents=True)
        for i in range(number):
            picture = Image.new("L", (28, 28))
            ImageDraw.Draw(picture).text(random.integers(2, 8, 2).tolist(), letter, 255, ImageFont.load_default(20))
            picture.save(folder / letter / f"{i}.png")


def test_own_folder_of_26_letters_answers_in_its_words(tmp_path):
    letters(tmp_path / "my letters")
    finished = run(tmp_path, "--dataset", "my letters", "--image-size", 28, "--epochs", 15, "--filters", 16, 32)
    folder = tmp_path / "outputs" / "my letters"
    assert_complete(folder, finished, classes=26)
    assert list(metrics(folder)["classes"])[:26] == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert metrics(folder)["test_accuracy"] > 0.8
    shutil.move(tmp_path / "my letters", tmp_path / "elsewhere")
    finished = run(tmp_path, "--dataset", "my letters", "--predict", "elsewhere/Q/0.png", "elsewhere/W/3.png")
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"0.png: Q \d", finished.stdout) and re.search(r"3.png: W \d", finished.stdout)


def test_own_photos_of_all_sizes_and_modes(tmp_path):
    """Three classes by colour, in train/ and test/, with files that are no pictures among them."""
    random = np.random.default_rng(0)
    kinds = [("RGB", "jpg"), ("RGBA", "png"), ("P", "gif"), ("CMYK", "jpg"), ("RGB", "bmp"), ("LA", "png"),
             ("I;16", "png")]
    for part, number in (("train", 42), ("test", 14)):
        for place, name in enumerate(("blue sky", "red wine", "zebra")):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for i in range(number):
                mode, ending = kinds[i % 5 if place < 2 else i % 7]
                pixels = random.integers(0, 90, (*random.integers(20, 300, 2), 3)).astype("uint8")
                if place == 2:
                    pixels[::6] = pixels[1::6][:len(pixels[::6])] = 230  # stripes, in any colour mode
                else:
                    pixels[..., 2 - 2 * place] += 150
                if mode == "I;16":
                    picture = Image.fromarray(pixels[..., 0].astype("uint16") * 257)
                else:
                    picture = Image.fromarray(pixels).convert(mode)
                picture.save(tmp_path / "photos" / part / name / f"{i}.{ending}")
    odd = tmp_path / "photos" / "train"
    (odd / "empty").mkdir()
    (odd / ".hidden").mkdir()
    Image.new("L", (9, 9)).save(odd / ".hidden" / "thumbnail.png")
    (odd / "zebra" / "text.png").write_text("no picture at all")
    (odd / "zebra" / ".DS_Store").write_bytes(bytes(100))
    bomb = Image.new("1", (20000, 20000))  # 50 kB in the file, 1.6 GB as colours
    bomb.save(odd / "zebra" / "bomb.png", optimize=True)
    finished = run(tmp_path, "--dataset", "photos", "--image-size", 32, "--epochs", 8, "--filters", 8, 16)
    assert finished.returncode == 0, finished.stderr
    skipped = [line for line in finished.stderr.splitlines() if line.startswith("Skipped")]
    assert len(skipped) == 2 and "text.png" in "".join(skipped) and "bomb.png" in "".join(skipped)
    assert_complete(tmp_path / "outputs" / "photos", finished, classes=3)
    found = metrics(tmp_path / "outputs" / "photos")
    assert list(found["classes"])[:3] == ["blue sky", "red wine", "zebra"]
    assert np.sum(found["confusion_matrix"]) == 42 and found["test_accuracy"] > 0.6


def arrays(number=60, **changes):
    """What an .npz file holds: black and white images with a little noise."""
    y = np.arange(number) % 2
    x = (np.random.default_rng(0).integers(0, 40, (number, 16, 16)) + 200 * y[:, None, None]).astype("uint8")
    return dict(x_train=x, y_train=y, x_test=x[:20], y_test=y[:20]) | changes


@pytest.mark.parametrize("parts", ["with test", "without"])
def test_own_npz_file(tmp_path, parts):
    names = np.array(["off", "on $^$"])  # matplotlib would read a formula
    given = arrays()
    if parts == "without":
        given = dict(x_train=given["x_train"], y_train=names[given["y_train"]])
    np.savez(tmp_path / "lamp.npz", **given)
    finished = run(tmp_path, "--dataset", "lamp.npz", *SHORT)
    assert_complete(tmp_path / "outputs" / "lamp", finished, classes=2)
    found = metrics(tmp_path / "outputs" / "lamp")
    assert list(found["classes"])[:2] == (["0", "1"] if parts == "with test" else ["off", "on $^$"])
    assert np.sum(found["confusion_matrix"]) == (20 if parts == "with test" else 12)


BAD = [
    ("--dataset", "cats"), ("--dataset", ""), ("--dataset", "notes.txt"), ("--image-size", "7"),
    ("--image-size", "513"),
    ("--epochs", "0"), ("--epochs", "-3"), ("--epochs", "many"), ("--epochs", "1e3"), ("--batch-size", "0"),
    ("--batch-size", "1.5"), ("--learning-rate", "0"), ("--learning-rate", "-1"), ("--learning-rate", "nan"),
    ("--learning-rate", "inf"), ("--optimizer", "adamw"), ("--filters", "0"), ("--filters", "8 -8"),
    ("--filters", "8 8 8 8"), ("--filters", "8,8"), ("--validation-split", "0"), ("--validation-split", "1"),
    ("--validation-split", "nan"), ("--dropout", "1"), ("--dropout", "nan"), ("--label-smoothing", "-0.1"),
    ("--label-smoothing", "1"), ("--precision", "int8"), ("--seed", "-1"), ("--seed", "4294967296"),
    ("--dense-units", "0"), ("--shift", "8"), ("--shift", "-1"), ("--weight-decay", "-1"), ("--weight-decay", "101"),
    ("--dataset", "missing.npz"), ("--dataset", "other/digits"), ("--output-dir", "a_file"),
    ("--output-dir", "a_file/below"), ("--resume", ""), ("--epoch", "3"),
]
SLOW_BAD = [  # only the data, or the model, can tell
    ("--validation-split", "0.999"), ("--predict", "a.png"), ("--dataset", "broken.npz"),
    ("--dataset", "pickle.npz"), ("--dataset", "scaled.npz"), ("--dataset", "flat.npz"),
    ("--dataset", "unequal.npz"), ("--dataset", "no_train.npz"), ("--dataset", "one_class.npz"),
    ("--dataset", "new_class.npz"), ("--dataset", "tiny.npz"), ("--shift", "20 --dataset few_pixels.npz"),
    ("--dataset", "no_test.npz"), ("--dataset", "no_pictures"),
    ("--dataset", "one_class"), ("--dataset", "few"), ("--weight-decay", "100 --learning-rate 10"),
]


def bad_data(folder):
    """One file or folder for each name in SLOW_BAD."""
    (folder / "a_file").write_text("not a folder")
    (folder / "notes.txt").write_text("not a data set")
    (folder / "broken.npz").write_text("not a zip file")
    for name, changes in dict(
        pickle=dict(x_train=np.array([1, "a", None], object)), scaled=dict(x_train=arrays()["x_train"] / 255),
        flat=dict(x_train=np.zeros((60, 256), "uint8"), x_test=np.zeros((20, 256), "uint8")),
        unequal=dict(y_train=np.zeros(59)),
        one_class=dict(y_train=np.zeros(60), y_test=np.zeros(20)), new_class=dict(y_test=np.arange(20)),
        few_pixels=dict(), no_test=dict(x_test=np.zeros((0, 16, 16), "uint8"), y_test=np.zeros(0)),
        tiny=dict(x_train=np.zeros((60, 2, 2), "uint8"), x_test=np.zeros((20, 2, 2), "uint8")),
    ).items():
        np.savez(folder / f"{name}.npz", **arrays(**changes))
    np.savez(folder / "no_train.npz", images=np.zeros(3))
    for path in ("no_pictures/a", "no_pictures/b", "other/digits/a", "one_class/a", "few/a", "few/b"):
        (folder / path).mkdir(parents=True)
    for i in range(8):
        Image.new("L", (9, 9), i).save(folder / "one_class" / "a" / f"{i}.png")
    for path in ("few/a/1.png", "few/a/2.png", "few/b/1.png"):
        Image.new("L", (9, 9)).save(folder / path)


@pytest.mark.parametrize("flag, value", BAD + SLOW_BAD)
def test_bad_input_gets_one_sentence_and_status_2(tmp_path, flag, value):
    bad_data(tmp_path)
    title = pathlib.PurePath(value).stem if flag == "--dataset" and value else "digits"
    earlier = tmp_path / "outputs" / title
    earlier.mkdir(parents=True)
    (earlier / "metrics.json").write_text("an earlier run")
    started = time.monotonic()
    finished = run(tmp_path, flag, *value.split() if value or flag == "--resume" else [""])
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1 and "Traceback" not in finished.stderr, finished.stderr
    if "100" in value:
        assert "NaN" in finished.stderr and "--learning-rate 1." in finished.stderr
    else:
        assert flag in finished.stderr or value.split()[-1] in finished.stderr
        assert flag == "--predict" or not value or value.split()[-1] in finished.stderr
    if (flag, value) in BAD:
        assert time.monotonic() - started < 3, "a mistake is found before TensorFlow is loaded"
    assert contents(earlier) == {"metrics.json": b"an earlier run"}


def start_and_send(sign, line_start, folder, *arguments):
    """Start a run, send it a signal when a line of its output starts as given, and return its exit status."""
    (folder / "keras").mkdir(exist_ok=True)
    process = subprocess.Popen(**command(folder, *arguments), stdout=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith(line_start):
            time.sleep(0.05)  # seconds; into the epoch
            process.send_signal(sign)
    process.stdout.close()
    return process.wait()


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_grad_cam_points_at_the_mark_and_epochs_show_both_sides(tmp_path):
    """Four marks, each in a random quadrant of a noisy picture: the heat's centre lies in that quadrant.

    In the same process: what `batches` serves has its own labels, once each, and mirrored every other time.
    """
    random, places = np.random.default_rng(0), []
    images = random.integers(0, 80, (1000, 32, 32)).astype("uint8")
    for i, image in enumerate(images):
        row, column = random.integers(2, 5, 2) + 16 * (place := random.integers(0, 2, 2))
        mark = np.zeros((9, 9), "uint8")
        (mark[3:6], mark[:, 3:6], mark[::8], mark[:, ::8])[i % 4][:] = 170
        image[row:row + 9, column:column + 9] += mark
        places.append(place)
    np.savez(tmp_path / "marks.npz", x_train=images[:800], y_train=np.arange(800) % 4, x_test=images[800:],
             y_test=np.arange(200) % 4)
    program = f"""
import runpy, sys, numpy
sys.argv = ["", "--dataset", "marks.npz", "--filters", "16", "32", "--epochs", "6"]
names = runpy.run_path({str(SCRIPT)!r})
x, y = names["x_train"][:100], names["y_train"][:100]
served = names["batches"](x, y, training=True)
names["batches"].__globals__["MIRROR"] = True  # which the data set has not by default
mirroring = names["batches"](x, y, training=True)
for training, epochs in (False, [names["batches"](x, y)]), (True, [served]), (True, [mirroring, mirroring]):
    views = []
    for epoch in epochs:
        images, labels = (numpy.concatenate(part) for part in zip(*epoch.as_numpy_iterator()))
        same = numpy.stack([(x == image).all((1, 2, 3)) for image in images])
        turned = numpy.stack([(x == image[:, ::-1]).all((1, 2, 3)) for image in images])
        order = (same | turned).argmax(axis=1)
        assert sorted(order) == list(range(100)), "not each image once"
        assert (y[order] == labels.argmax(axis=1)).all(), "an image has another's label"
        assert (order == numpy.arange(100)).all() != training, "shuffled where it should not be, or the reverse"
        views.append(turned.any(axis=0))
    assert views[0].any() == (len(epochs) == 2) and not views[0].all()
    assert len(epochs) == 1 or (views[0] != views[1]).all(), "an image seen from the same side in a row"
own, other = (names["grad_cam"](names["x_test"], (names["predicted"] + i) % 4) for i in (0, 1))
numpy.savez("heats.npz", heats=own, other=other, accuracy=names["accuracy"])"""
    finished = subprocess.run(**command(tmp_path) | dict(args=[sys.executable, "-c", program]), capture_output=True)
    assert finished.returncode == 0, finished.stderr
    found = np.load(tmp_path / "heats.npz")
    heats = found["heats"]
    assert found["accuracy"] > 0.9 and heats.shape == (200, 32, 32) and heats.min() >= 0 and heats.max() <= 1
    middle = np.arange(32) - 15.5
    at_mark, of_other = (
        ((np.stack([h.sum(2) @ middle, h.sum(1) @ middle], axis=1) > 0) == places[800:]).all(axis=1).mean()
        for h in (heats, found["other"]))
    assert at_mark >= 0.9 and of_other < 0.7, (at_mark, of_other)


def test_killed_run_resumes_and_leaves_earlier_results_until_then(default_run, tmp_path):
    shutil.copytree(default_run[0] / "outputs", tmp_path / "outputs")
    results = tmp_path / "outputs" / "digits"
    before = contents(results)
    assert start_and_send(signal.SIGKILL, "Epoch 12/", tmp_path) == -signal.SIGKILL
    assert contents(results) == before
    other = run(tmp_path, "--resume", "--epochs", 31, "--optimizer", "sgd")
    assert other.returncode == 2 and "EPOCHS was 30" in other.stderr and "OPTIMIZER was adam" in other.stderr
    (tmp_path / "outputs" / "experiments.csv").unlink()
    assert start_and_send(signal.SIGKILL, "Test accuracy", tmp_path, "--resume") == -signal.SIGKILL
    assert contents(results) == before, "killed while it draws"
    (tmp_path / "outputs" / "experiments.csv").mkdir()
    finished = run(tmp_path, "--resume", "--filters", 32, 64)  # the values it had by default
    assert "Epoch 30/" not in finished.stdout, "all epochs had been finished"
    assert finished.returncode == 2 and "experiments.csv can't be" in finished.stderr.splitlines()[-1]
    finished.returncode = 0  # the row is missing, but all else is there
    assert_complete(results, finished)
    uncut = history(default_run[0] / "outputs" / "digits")
    assert [row["learning_rate"] for row in history(results)] == [row["learning_rate"] for row in uncut]
    assert metrics(results)["test_accuracy"] >= 0.98


def test_ctrl_c_ends_training_gracefully(tmp_path):
    earlier = tmp_path / "outputs" / "digits"
    earlier.mkdir(parents=True)
    (earlier / "metrics.json").write_text("an earlier run")
    assert start_and_send(signal.SIGINT, "Epoch 1/", tmp_path, "--epochs", 500) == 2, "nothing was learned yet"
    assert contents(earlier) == {"metrics.json": b"an earlier run"}
    assert start_and_send(signal.SIGINT, "Epoch 2/", tmp_path, "--epochs", 500) == 0
    finished = subprocess.CompletedProcess([], 0)
    assert_complete(tmp_path / "outputs" / "digits", finished, epochs=2)


def test_help_lists_every_setting_with_its_meaning(tmp_path):
    source = SCRIPT.read_text(encoding="utf-8")
    block = source[source.index("# %% Settings"):source.index("# %% Flags")]
    names = re.findall(r"^([A-Z_]+) = ", block, re.MULTILINE)
    started = time.monotonic()
    finished = run(tmp_path, "--help", COLUMNS="500")
    assert time.monotonic() - started < 3
    assert finished.returncode == 0 and len(names) >= 17
    for name in names:
        meaning = re.search(rf"^{name} = .*? +# (.+)", block, re.MULTILINE)[1]
        assert "--" + name.lower().replace("_", "-") in finished.stdout and meaning in finished.stdout
        assert name.lower().replace("_", "-") in (ROOT / "README.md").read_text(encoding="utf-8")


def test_cells_run_in_a_notebook(tmp_path):
    """A notebook has no __file__ and no command line of ours, and displays figures itself."""
    cells = re.sub(r"^(EPOCHS|FILTERS) = .*", lambda m: f"{m[1]} = {dict(EPOCHS=1, FILTERS=(8,))[m[1]]}",
                   SCRIPT.read_text(encoding="utf-8"), flags=re.MULTILINE).split("\n# %%")
    assert len(cells) > 8
    notebook = "import sys, types; sys.modules['ipykernel'] = types.ModuleType('ipykernel'); names = {}\n"
    notebook += "".join(f"exec({'#' + cell!r}, names)\n" for cell in cells)
    finished = subprocess.run([sys.executable, "-c", notebook, "--not-a-flag-of-ours"], cwd=tmp_path, text=True,
                              capture_output=True, env={**os.environ, "MPLBACKEND": "Agg"})
    assert_complete(tmp_path / "outputs" / "digits", finished)


def test_requirements_stand_the_same_in_both_places():
    source = SCRIPT.read_text(encoding="utf-8")
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", source, re.MULTILINE)[1]
    metadata = tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))
    assert metadata["dependencies"] == (ROOT / "requirements.txt").read_text().split()
    assert len(metadata["dependencies"]) == 5
