"""Chapter 8: a folder, an .npz file, one picture, a drawing, and --predict. All data is made here."""

import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

import image_recognition_cnn as script
from helpers import assert_drawn, one_sentence, process

COLOURS = {"red": (200, 30, 40), "green": (30, 180, 60), "blue": (20, 60, 210)}


def picture(colour, seed, size=(40, 30)):
    """A picture of one main colour, with a square in it: no two are copies."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype("uint8")
    made = Image.blend(Image.fromarray(noise).resize(size), Image.new("RGB", size, colour), 0.8)
    return made


def fill(folder, names=tuple(COLOURS), number=6, seed=0):
    """folder/NAME/0.png ... for each name, in the colours of the names, or red."""
    for name in names:
        place = pathlib.Path(folder, name)
        place.mkdir(parents=True, exist_ok=True)
        for i in range(number):
            picture(COLOURS.get(name, COLOURS["red"]), hash_of(name, i, seed)).save(place / f"{i}.png")


def hash_of(name, i, seed):
    return sum(os.fsencode(name)) * 1000 + 10 * i + seed


def load(settings, dataset, **changes):
    return script.load_data(settings(DATASET=str(dataset), IMAGE_SIZE=16, **changes))


def assert_labels_fit(parts, class_names):
    """The main colour of each image is that of its class."""
    for images, labels in parts:
        for image, label in zip(images, labels):
            mean = image.reshape(-1, 3).mean(axis=0)
            nearest = min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())
            assert nearest == class_names[label]


@pytest.mark.parametrize("train, test, val", [
    ("", None, None), ("train", "test", "val"), ("training_set", "test_set", None),
    ("seg_train/seg_train", "seg_test/seg_test", None), ("Train_images", None, "Valid")])
def test_layouts_of_folders(settings, capsys, train, test, val):
    fill(pathlib.Path("data", train))
    for number, part in ((4, test), (3, val)):
        if part:
            fill(pathlib.Path("data", part), number=number, seed=number)
    *parts, class_names = load(settings, "data")
    assert class_names == sorted(COLOURS)
    assert_labels_fit(parts, class_names)
    sizes = [len(labels) for _, labels in parts]
    if test and val:
        assert sizes == [18, 9, 12]
    elif test or val:  # val alone is the test part
        assert sizes[2] == (12 if test else 9) and sum(sizes[:2]) == 18
    else:
        assert sum(sizes) == 18 and min(sizes) >= 3
    assert "Warning" not in capsys.readouterr().err


def test_names_of_folders(settings, capsys, tmp_path):
    fill("rails", ["train_station", "valley"])  # classes whose names hold train and val
    assert load(settings, "rails")[3] == ["train_station", "valley"]
    fill("numbers", ["10", "9", "2"])
    assert load(settings, "numbers")[3] == ["2", "9", "10"]
    fill("names", ["猫", os.fsdecode(b"caf\xe9"), ".hidden", "__MACOSX"])
    pathlib.Path("names", "猫", "Thumbs.db").write_text("x")
    assert load(settings, "names")[3] == ["caf\\udce9", "猫"]
    assert "Thumbs" not in capsys.readouterr().err
    fill("loose/train")
    pathlib.Path("loose/test").mkdir()
    picture("red", 1).save("loose/test/1.png")  # a test part without class folders
    load(settings, "loose")
    assert "in a class folder are read: 1 (loose/test/1.png)" in capsys.readouterr().err
    fill("twice/train1")
    fill("twice/train2")
    fill("only/test")
    fill("alike", [os.fsdecode(b"caf\xe9"), os.fsdecode(b"caf\xe8")])
    assert len(load(settings, "alike")[3]) == 2
    for folder in ("twice", "only"):
        with one_sentence(capsys, folder, "is the training part?"):
            load(settings, folder)


def test_what_is_left_out_is_named(settings, capsys):
    fill("data")
    fill("data/red/inner", ["deep"])
    picture("red", 5).save("data/loose.png")
    for i in range(8):
        pathlib.Path("data/red", f"text{i}.jpg").write_text("version https://git-lfs.github.com")
    pathlib.Path("data/blue/empty.png").write_bytes(b"")
    whole = pathlib.Path("data/green/0.png").read_bytes()
    pathlib.Path("data/green/cut.png").write_bytes(whole[:len(whole) // 2])
    Image.fromarray(np.arange(256, dtype="uint16").reshape(16, 16) * 256).save("data/blue/deep.png")
    load(settings, "data")
    warnings = capsys.readouterr().err.splitlines()
    said = "\n".join(warnings)
    assert "read: 7 (data/loose.png, data/red/inner/deep/0.png" in said
    assert "empty or texts: 9 (data/blue/empty.png" in said and said.count("text") < 7
    assert "cut.png" in said and "save them with 8 bits: 1 (data/blue/deep.png" in said
    assert len(warnings) == 4


def test_the_results_may_not_lie_in_the_data_set(settings, capsys):
    fill("data")
    with one_sentence(capsys, "--output-dir", "lies in the data set"):
        load(settings, "data", OUTPUT_DIR="data/outputs")


def read(path, shape=(16, 16, 3)):
    return script.read_picture(path, shape, None)


def test_forms_of_one_picture(tmp_path):
    left_red = Image.new("RGB", (64, 64), COLOURS["blue"])
    left_red.paste(COLOURS["red"], (0, 0, 32, 64))
    left_red.save(tmp_path / "plain.png")
    expected = read(tmp_path / "plain.png")[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right by the viewer
    left_red.rotate(90).save(tmp_path / "turned.tif", exif=exif)
    left_red.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.gif")
    left_red.resize((2048, 2048)).save(tmp_path / "large.jpg", quality=95)
    for name in ("turned.tif", "palette.gif", "large.jpg"):
        image, remark = read(tmp_path / name)
        assert remark == "" and np.abs(image.astype(int) - expected).mean() < 4, name
    see_through = left_red.convert("RGBA")
    see_through.paste((0, 0, 0, 0), (32, 0, 64, 64))
    see_through.save(tmp_path / "see_through.png")
    image, remark = read(tmp_path / "see_through.png")
    assert image[:, -1].min() == 255 and "become white" in remark
    left_red.save(tmp_path / "pages.tif", save_all=True, append_images=[Image.new("RGB", (64, 64))])
    image, remark = read(tmp_path / "pages.tif")
    assert np.abs(image.astype(int) - expected).mean() < 4 and "only the first" in remark
    wide = Image.new("RGB", (192, 64), "white")
    wide.paste(left_red, (64, 0))
    wide.save(tmp_path / "wide.png")
    assert np.abs(read(tmp_path / "wide.png")[0].astype(int) - expected).mean() < 4


@pytest.mark.parametrize("dataset, words", [
    ("one", ["1 classes"]), ("few", ["7 (a, b, c, d, e ...)", "fewer than 3"]),
    ("unknown", ["1 (blue)", "fewer than 3"]), ("shade", ["100% of the train images", "one shade"]),
    ("empty", ["there are no pictures"]), ("table.csv", ["is none of these", "npz"]),
    ("https://example.org/x.zip", ["is not there"])])
def test_what_can_not_be_learned(settings, capsys, dataset, words):
    fill("one", ["red"])
    fill("few", "abcdefg", 2)
    fill("few", ["x", "y"])
    fill("unknown/train", ["red", "green"])
    fill("unknown/test")
    for i in range(8):
        for name in "ab":
            path = pathlib.Path("shade", name, f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (20, 20), i % 2).save(path)
    os.makedirs("empty/cats", exist_ok=True)
    pathlib.Path("table.csv").write_text("1,2")
    with one_sentence(capsys, *words):
        load(settings, dataset)


def test_a_part_without_pictures(settings, capsys):
    fill("data/train")
    fill("data/test", number=1, seed=1)
    for name in COLOURS:
        pathlib.Path("data/test", name, "0.png").write_text("a text")
    with pytest.raises(SystemExit):
        load(settings, "data")
    assert "there are no pictures in folders of data/test" in capsys.readouterr().err
    picture("red", 9).save("data/test/red/1.png")
    load(settings, "data")
    assert "the test part of data has no images of 2 (blue, green)" in capsys.readouterr().err


def test_copies_are_named(settings, capsys):
    for seed, part in enumerate(("train", "val", "test")):
        fill(f"data/{part}", number=6 - seed, seed=seed)
    load(settings, "data")
    assert capsys.readouterr().err == ""  # other pictures of the same colour are no copies
    Image.open("data/train/red/0.png").save("data/test/blue/same.png")
    saved_anew = Image.open("data/train/green/1.png").resize((36, 27))
    saved_anew.save("data/test/green/anew.jpg", quality=80)
    blank = Image.new("L", (30, 30), 190)
    for part in ("train", "test"):
        blank.save(f"data/{part}/red/blank.png")
    load(settings, "data")
    said = capsys.readouterr().err
    assert said.startswith("Warning: 2 of 30 ") and "which is right?" in said
    assert "blue/same.png = train/red/0.png" in said and "anew.jpg = train/green/1.png" in said


IMAGES = np.random.default_rng(0).integers(0, 256, (30, 12, 10, 3)).astype("uint8")
LABELS = np.arange(30) % 3


@pytest.mark.parametrize("changes", [
    {}, dict(x_train=IMAGES[..., 0]), dict(x_train=IMAGES[..., :1]), dict(y_train=LABELS[:, None]),
    dict(x_train=IMAGES.astype("float32"), y_train=LABELS.astype(float)),
    dict(y_train=np.array(["ant", "bee", "cat"])[LABELS]),
    dict(x_test=IMAGES[:6], y_test=LABELS[:6] * 1, x_val=IMAGES[6:12], y_val=LABELS[6:12])], ids=str)
def test_npz_files(settings, changes):
    np.savez("made.npz", **{"x_train": IMAGES, "y_train": LABELS, **changes})
    *parts, class_names = load(settings, "made.npz")
    assert class_names in (["0", "1", "2"], ["0.0", "1.0", "2.0"], ["ant", "bee", "cat"])
    assert sum(len(labels) for _, labels in parts) == (42 if "x_test" in changes else 30)
    channels = 1 if changes.get("x_train", IMAGES).ndim == 3 else parts[0][0].shape[3]
    for images, labels in parts:
        assert images.dtype == "uint8" and images.shape[1:] == (12, 10, channels)
        for image, label in zip(images, labels):
            same = (IMAGES[..., :channels] == image).all(axis=(1, 2, 3))
            assert label in LABELS[same]


@pytest.mark.parametrize("changes", [
    dict(x_train=IMAGES / 255), dict(x_train=IMAGES // 16), dict(x_train=IMAGES.astype(int) - 9),
    dict(y_train=np.eye(3)[LABELS]), dict(X=IMAGES), dict(y_train=LABELS[:9]),
    dict(y_train=LABELS.astype(object)), dict(x_train=IMAGES.astype(float) * np.nan),
    dict(x_train=IMAGES.reshape(30, -1)), dict(x_test=IMAGES),
    dict(x_test=IMAGES[:, :9], y_test=LABELS)], ids=lambda one: list(one)[0])
def test_npz_files_that_hold_something_else(settings, capsys, changes):
    arrays = {"x_train": IMAGES, "y_train": LABELS, **changes}
    if "X" in changes:
        del arrays["x_train"]
    np.savez("made.npz", **arrays)
    with one_sentence(capsys, "made.npz holds something else", "It takes x_train and y_train"):
        load(settings, "made.npz")
    pathlib.Path("made.npz").write_text("no zip")
    with one_sentence(capsys, "made.npz holds something else", "It takes x_train"):
        load(settings, "made.npz")


def test_a_whole_journey_with_own_pictures(tmp_path):
    fill(tmp_path / "pets", number=8)
    flags = ["--dataset", "pets", "--epochs", 1, "--filters", 8, "--image-size", 16]
    trained = process(tmp_path, *flags)
    assert trained.returncode == 0, trained.stderr
    fill(tmp_path / "new/monday", ["red"], 2, seed=3)
    fill(tmp_path / "new", ["blue"], 60, seed=4)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    asked = process(tmp_path, "--dataset", "pets", "--predict", "new", "pets/r*/0.png", "none.png",
                    "broken.jpg")
    lines = [line for line in asked.stdout.splitlines() if line.startswith(("new", "pets"))]
    assert asked.returncode == 1 and len(lines) == 63
    assert "none.png" in asked.stderr and "broken.jpg" in asked.stderr
    assert "60 of 63 are drawn" in asked.stdout
    assert_drawn(tmp_path / "outputs/pets/predictions.png")
    with Image.open(tmp_path / "outputs/pets/predictions.png") as drawn:  # the last row is full
        last_row = np.asarray(drawn.convert("RGB"), int)[-drawn.height // 20:]
        assert np.ptp(last_row[:, -drawn.width // 6:]) > 100
    model = script.keras.models.load_model(tmp_path / "outputs/pets/model.keras")
    image, _ = read(tmp_path / "pets/red/0.png")
    answer = model.predict(image[np.newaxis], verbose=0)[0]
    assert f"{sorted(COLOURS)[answer.argmax()]} {answer.max():.1%}" in lines[-1]
    os.rename(tmp_path / "pets", tmp_path / "others")
    other = process(tmp_path, "--dataset", "elsewhere/pets", "--predict", "new")
    assert other.returncode == 2 and "belongs to another data set" in other.stderr
    about = tmp_path / "outputs/pets/model.json"
    kept = json.loads(about.read_text())
    (tmp_path / "outputs/pets/model.keras").write_bytes(b"broken")
    broken = process(tmp_path, "--dataset", kept["dataset"], "--predict", "new")
    assert broken.returncode == 2 and kept["versions"]["keras"] in broken.stderr
    assert "Traceback" not in asked.stderr + other.stderr + broken.stderr


def pen_on_paper(digit, shadow=0.0, board=False, pen=14):
    """A photo (600, 400) of a stroke: 1, or 7, or 0."""
    lines = {1: [(200, 180), (200, 420)], 7: [(120, 190), (280, 190), (180, 420)]}
    paper = Image.new("L", (400, 600), 235)
    draw = ImageDraw.Draw(paper)
    if digit == 0:
        draw.ellipse((130, 180, 270, 420), outline=40, width=pen)
    else:
        draw.line(lines[digit], fill=40, width=pen, joint="curve")
    values = np.asarray(paper.filter(ImageFilter.GaussianBlur(1)), float)
    y, x = np.mgrid[0:600, 0:400]
    values = values * (1 - shadow * (0.7 * x / 400 + 0.3 * y / 600))
    values += np.random.default_rng(1).normal(0, 3, values.shape)
    return Image.fromarray(np.clip(255 - values if board else values, 0, 255).astype("uint8"))


@pytest.fixture(scope="module")
def about_drawings():
    """Drawings in white on black, 20x20, of which the ink fills 16 pixels of the height."""
    images = np.zeros((40, 20, 20, 1), "uint8")
    for i, image in enumerate(images):
        drawn = Image.new("L", (20, 20))
        ImageDraw.Draw(drawn).line([(8 - i % 6, 2), (8 + i % 7, 17)], fill=255, width=1 + i % 4)
        image[..., 0] = np.asarray(drawn)
    about = script.describe_drawings(images)
    assert about["white_on_black"] and about["ink_share"] == pytest.approx(0.8)
    return about


@pytest.mark.parametrize("kinds", [
    {}, dict(shadow=0.35), dict(shadow=0.7), dict(board=True), dict(board=True, shadow=0.4),
    dict(pen=5)], ids=str)
@pytest.mark.parametrize("digit", [0, 1, 7])
def test_pen_on_paper_becomes_white_on_black(about_drawings, digit, kinds):
    image, _ = script.prepare_drawing(pen_on_paper(digit, **kinds), (20, 20, 1), about_drawings)
    expected, _ = script.prepare_drawing(pen_on_paper(digit), (20, 20, 1), about_drawings)
    ink = image[..., 0] > script.INK
    rows = np.flatnonzero(ink.any(axis=1))
    assert (rows[0], rows[-1]) == (2, 17)  # 16 of 20 pixels, in the middle
    assert image.max() == 255 and 0.02 < ink.mean() < 0.5
    assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > 0.75


def test_what_is_no_such_drawing(about_drawings):
    photos = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 1)).astype("uint8")
    assert not script.describe_drawings(photos)["white_on_black"]
    cells = np.zeros((40, 20, 20, 1), "uint8")
    for i, image in enumerate(cells):
        image[10 - i % 8:11 + i % 8, 9:11] = 120 + 3 * i
    assert not script.describe_drawings(cells)["white_on_black"]
    digits = (script.load_digits().images * 15.9).astype("uint8")[..., np.newaxis]
    assert script.describe_drawings(digits)["widest"] == pytest.approx(1, abs=0.3)
    two = Image.new("L", (800, 600), 235)
    two.paste(pen_on_paper(0), (0, 0))
    two.paste(pen_on_paper(0), (400, 0))
    assert "wider than" in script.prepare_drawing(two, (20, 20, 1), about_drawings)[1]
    blank = pen_on_paper(1, pen=0).point(lambda value: 235)
    assert script.prepare_drawing(blank, (20, 20, 1), about_drawings)[1] == "without ink"
    thin = Image.new("L", (300, 300), "white")
    thin.paste(0, (150, 10, 151, 290))
    image, remark = script.prepare_drawing(thin, (20, 20, 1), about_drawings)
    assert remark == "" and image[10, 10] > 200
