"""Chapter 9: a folder, an .npz file, one picture, a drawing, --predict. All data is made here."""

import json
import os
import pathlib
import struct
import unicodedata

import keras
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
            made = picture(COLOURS.get(name, COLOURS["red"]), hash_of(name, i, seed))
            made.save(place / f"{i}.png")


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
    said = capsys.readouterr()
    assert "18 pictures for train in data" in said.out and "Warning" not in said.err


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
    assert "class folders of loose/train are read; left out: 1 (loose/test/1.png)" in (
        capsys.readouterr().err)
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
    assert "left out: 7 (data/loose.png, data/red/inner/deep/0.png" in said
    assert "such as text or HEIC (save photos as JPEG or PNG): 9 (data/blue/empty.png" in said
    assert "cut.png" in said and "save them with 8 bits): 1 (data/blue/deep.png" in said
    assert len(warnings) == 4


@pytest.mark.parametrize("names", [
    ["train", "test1"], ["Training", "Testing", "validation"], ["train2017", "val2017"], ["train"]])
def test_parts_without_class_folders_are_not_learned_as_classes(settings, capsys, names):
    fill("data", names)
    if len(names) > 1:
        os.mkdir("data/labels")  # a folder beside them changes nothing
    words = ["are parts, not classes", f"data/{names[0]}", "folder for each class"]
    with one_sentence(capsys, *words):
        load(settings, "data")


@pytest.mark.parametrize("names", [
    ["train", "bus", "car"], ["test_tube", "beaker"], ["contrast", "trains", "rain"]])
def test_classes_that_are_called_like_a_part(settings, capsys, names):
    fill("data", names)
    assert load(settings, "data")[3] == sorted(names)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name, part", [
    ("train", "train"), ("Training", "train"), ("seg_train", "train"), ("train1", "train"),
    ("Train_images", "train"), ("trainset", "train"), ("test_set", "test"), ("TEST", "test"),
    ("val", "val"), ("Validation", "val"), ("valid-2", "val"), ("trains", None), ("rain", None),
    ("valley", None), ("latest", None), ("contest", None)])
def test_a_part_is_named_by_a_whole_word(name, part):
    assert script.part_of(pathlib.Path("data", name)) == part


def test_pictures_below_the_class_folders_are_found_by_name(settings, capsys):
    fill("deep/trains", ["images"])
    fill("deep/cars", ["images"])
    with one_sentence(capsys, "Files were found in: 2 (deep/cars/images, deep/trains/images)"):
        load(settings, "deep")


def test_an_empty_class_is_named(settings, capsys):
    fill("data", ["red", "green"])
    os.mkdir("data/blue")
    assert load(settings, "data")[3] == ["green", "red"]
    assert "do not become classes: 1 (data/blue)" in capsys.readouterr().err


def test_a_class_of_heic_files_is_named_with_the_reason(settings, capsys):
    fill("data", ["red", "green", "blue"])
    for path in pathlib.Path("data/blue").iterdir():  # one is called .jpg, as after a bad export
        path.rename(path.with_suffix(".jpg" if path.stem == "0" else ".HEIC"))
    for path in pathlib.Path("data/blue").iterdir():
        path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    load(settings, "data")
    said = capsys.readouterr().err
    assert "such as text or HEIC (save photos as JPEG or PNG): 6 (data/blue/0" in said
    assert "do not become classes: 1 (data/blue)" in said


def test_a_broken_picture_is_named_with_pillows_reason(settings, capsys, tmp_path):
    fill("data")
    pathlib.Path("data/red/film.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(200))  # no picture
    whole = pathlib.Path("data/red/0.png").read_bytes()
    for number in (1, 2):
        pathlib.Path(f"data/red/cut{number}.png").write_bytes(whole[:len(whole) // (1 + number)])
    load(settings, "data")
    said = capsys.readouterr().err
    assert "of a kind that Pillow can't read" in said and "1 (data/red/film.mp4)" in said
    assert "(image file is truncated" in said and "2 (data/red/cut1.png, data/red/cut2.png)" in said


def test_a_name_in_composed_and_in_decomposed_letters_is_one_class(settings):
    names = [unicodedata.normalize(form, "K\u00e4fer") for form in ("NFC", "NFD")]
    assert names[0] != names[1]
    fill("data/train", ["Ameise", names[0]])
    fill("data/test", ["Ameise", names[1]], seed=1)
    fill("data/train", [names[1]], seed=2)
    *parts, class_names = load(settings, "data")
    assert class_names == ["Ameise", names[0]]
    assert [list(np.bincount(part[1])) for part in (parts[0], parts[2])] == [[5, 11], [6, 6]]


def test_white_space_around_a_label_makes_no_other_class(settings):
    labels = np.array(["ant\r", "bee\r", "cat", " ant", "bee\t", "cat\n"])[np.arange(30) % 6]
    np.savez("made.npz", x_train=IMAGES, y_train=labels)
    assert load(settings, "made.npz")[3] == ["ant", "bee", "cat"]


def test_links_in_a_circle_end_and_links_to_class_folders_are_followed(settings, capsys):
    fill("store", ["red", "green"])
    os.mkdir("data")
    os.symlink("../store/red", "data/red")
    fill("data", ["blue"])
    for name in ("red", "blue"):
        os.symlink(os.path.abspath("data"), f"data/{name}/all")  # back to where it came from
        os.symlink(os.path.abspath("."), f"data/{name}/out")  # to what lies around it
    *parts, class_names = load(settings, "data")
    assert class_names == ["blue", "red"]
    assert sum(len(labels) for _, labels in parts) == 12
    assert "left out" not in capsys.readouterr().err


def test_too_many_pixels_are_refused_before_reading(settings, capsys, monkeypatch):
    fill("data", number=8)
    monkeypatch.setattr(script, "MOST_GIGABYTES", 24 * 20**2 * 3 / 1e9)
    settings_of = {size: settings(DATASET="data", IMAGE_SIZE=size) for size in (20, 21)}
    script.load_data(settings_of[20])
    monkeypatch.setattr(script, "read_pictures", None)  # would be a TypeError
    with one_sentence(capsys, "24 pictures of 21x21 pixels", "use --image-size 20 or less"):
        script.load_data(settings_of[21])


def test_a_folder_called_like_a_built_in_data_set_is_told_how_to_be_named(settings, capsys):
    fill("digits")
    assert load(settings, "digits")[3] == list("0123456789")
    assert "your folder of this name is --dataset ./digits" in capsys.readouterr().err
    assert load(settings, "./digits")[3] == sorted(COLOURS)
    assert capsys.readouterr().err == ""


def test_an_image_size_that_is_too_small_for_a_pretrained_network(settings, capsys):
    small = settings(MODEL="vgg16", IMAGE_SIZE=31)
    with one_sentence(capsys, "--image-size 31 is too small for vgg16: it takes 32 or more"):
        script.build_pretrained((32, 32, 3), 2, small)


def grey_picture(kind, seed, tint=(1, 1, 1), noise=0.0):
    """A disc or a square somewhere, grey but for the tint and the noise of the colours."""
    random = np.random.default_rng(seed)
    drawn = Image.new("L", (32, 32), int(random.integers(150, 230)))
    x, y, half = random.integers(11, 21), random.integers(11, 21), random.integers(7, 10)
    box = [int(x - half), int(y - half), int(x + half), int(y + half)]
    ink = int(random.integers(20, 90))
    if kind == "disc":
        ImageDraw.Draw(drawn).ellipse(box, fill=ink)
    else:
        ImageDraw.Draw(drawn).line([box[:2], box[2:]], fill=ink, width=4)
    values = np.asarray(drawn)[..., np.newaxis] * np.array(tint)
    values = values + random.normal(0, noise, values.shape)
    return Image.fromarray(np.clip(values, 0, 255).astype("uint8"))


def save_grey_set(folder, number, **more):
    for kind in ("disc", "line"):
        for i in range(number):
            path = pathlib.Path(folder, f"{kind}/{kind}_{i}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            grey_picture(kind, hash_of(folder + kind, i, 0), **more).save(path, quality=70)


def test_a_network_that_learned_from_grey_pictures_knows_tinted_ones(run, no_pictures, capsys):
    save_grey_set("scans", 40)
    model, _, _ = run(DATASET="scans", IMAGE_SIZE=16, FILTERS=[16], EPOCHS=8, SHIFT=1)
    assert model.input_shape == (None, 16, 16, 1)
    assert "scans are grey: all parts become grey" in capsys.readouterr().out
    save_grey_set("warm", 8, tint=(1, 0.9, 0.7))
    save_grey_set("blue", 8, tint=(0.8, 0.9, 1))
    save_grey_set("noisy", 8, noise=10)
    script.main(["--dataset", "scans", "--predict", "warm", "blue", "noisy"])
    answers = [line for line in capsys.readouterr().out.splitlines() if ".jpg: " in line]
    right = [f": {pathlib.Path(line).parts[1]}" in line for line in answers]
    assert len(right) == 48 and np.mean(right) > 0.9


def test_the_training_part_alone_decides_whether_a_set_is_grey(settings, capsys):
    save_grey_set("data/train", 10, tint=(1, 0.99, 0.97))  # stray tints
    save_grey_set("data/test", 4, tint=(1, 0.8, 0.5))
    *parts, _ = load(settings, "data")
    assert [images.shape[3] for images, _ in parts] == [1, 1, 1]
    os.rename("data/train", "data/other")
    os.rename("data/test", "data/train")
    os.rename("data/other", "data/test")
    *parts, _ = load(settings, "data")
    assert [images.shape[3] for images, _ in parts] == [3, 3, 3]
    assert capsys.readouterr().err == ""


def test_grey_is_made_as_pillow_makes_it_for_npz_files_too(settings):
    images = np.repeat(IMAGES[..., :1], 3, axis=3)
    coloured = IMAGES[:6]
    np.savez("made.npz", x_train=images, y_train=LABELS, x_test=coloured, y_test=LABELS[:6])
    test_images = load(settings, "made.npz")[2][0]
    expected = [np.asarray(Image.fromarray(image).convert("L")) for image in coloured]
    assert np.array_equal(test_images[..., 0], expected)


def test_a_few_coloured_pictures_in_a_grey_set_are_named(settings, capsys):
    save_grey_set("data", 20)
    picture("red", 1).save("data/disc/disc_0.jpg")
    *parts, _ = load(settings, "data")
    assert parts[0][0].shape[3] == 3
    said = capsys.readouterr().err
    assert "few training images of data are in colour: 1 (disc/disc_0.jpg)" in said


def test_the_results_may_not_lie_in_the_data_set(settings, capsys):
    fill("data")
    with one_sentence(capsys, "--output-dir", "lies in the data set"):
        load(settings, "data", OUTPUT_DIR="data/outputs")


def read(path, shape=(16, 16, 3)):
    return script.read_picture(path, shape, None)


def save_as_rgb565(picture, path):
    """A BMP with 16 bits per pixel, 5 red, 6 green, 5 blue, as cameras of small boards write it."""
    red, green, blue = np.asarray(picture)[::-1].transpose(2, 0, 1).astype("<u2")
    pixels = (red >> 3 << 11 | green >> 2 << 5 | blue >> 3).tobytes()
    size = (picture.width, picture.height)
    head = struct.pack("<2sIHHI", b"BM", 66 + len(pixels), 0, 0, 66)
    head += struct.pack("<IiiHHIIiiII", 40, *size, 1, 16, 3, len(pixels), 2835, 2835, 0, 0)
    path.write_bytes(head + struct.pack("<III", 0xF800, 0x07E0, 0x001F) + pixels)


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
    left_red.convert("RGBA").save(tmp_path / "opaque.png")
    save_as_rgb565(left_red, tmp_path / "board.bmp")
    for name in ("turned.tif", "palette.gif", "large.jpg", "opaque.png", "board.bmp"):
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
    ("one", ["classes found: 1;"]), ("few", ["7 (a, b, c, d, e ...)", "fewer than 3"]),
    ("unknown", ["1 (blue)", "fewer than 3"]), ("shade", ["100% of the train images", "one shade"]),
    ("empty", ["there are no pictures"]), ("table.csv", ["is not a data set", "npz"]),
    ("https://example.org/x.zip", ["does not exist"])])
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


@pytest.mark.parametrize("number, contrast, say", [
    (1, 3, None), (2, 3, "warn"), (2, 4, None), (17, 3, "warn"), (18, 3, "stop")])
def test_images_of_one_shade_are_a_warning_or_the_end(monkeypatch, number, contrast, say):
    said = {}
    for name in ("warn", "stop", "warn_of_copies"):
        monkeypatch.setattr(script, name, lambda *words, name=name: said.update({name: words[0]}))
    images = np.tile(np.arange(12, dtype="uint8").reshape(4, 3), (20, 1, 1))[..., np.newaxis]
    images[:number] = 100
    images[:number, 0, 0] = 100 + contrast
    part = (images, np.arange(20) % 2, np.arange(20).astype(str))
    script.check_parts(dict.fromkeys(["train", "val", "test"], part), ["0", "1"], "data")
    del said["warn_of_copies"]
    assert list(said) == ([say] if say else [])
    assert say is None or said[say].startswith(f"{number / 20:.0%} of the test images of data")


def test_a_part_without_pictures(settings, capsys):
    fill("data/train")
    fill("data/test", number=1, seed=1)
    for name in COLOURS:
        pathlib.Path("data/test", name, "0.png").write_text("a text")
    with pytest.raises(SystemExit):
        load(settings, "data")
    assert "there are no pictures that can be read in data/test/CLASS/" in capsys.readouterr().err
    picture("red", 9).save("data/test/red/1.png")
    load(settings, "data")
    said = capsys.readouterr().err
    assert "the test part of data lacks images of some classes: 2 (blue, green)" in said


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
    assert "among the 30 validation and test images: 2 (" in said and "which is right?" in said
    assert "blue/same.png = train/red/0.png" in said and "anew.jpg = train/green/1.png" in said


IMAGES = np.random.default_rng(0).integers(0, 256, (30, 12, 10, 3)).astype("uint8")
LABELS = np.arange(30) % 3


@pytest.mark.parametrize("changes", [
    {}, dict(x_train=IMAGES[..., 0]), dict(x_train=IMAGES[..., :1]), dict(y_train=LABELS[:, None]),
    dict(x_train=IMAGES.astype("float32"), y_train=LABELS.astype(float)),
    dict(y_train=np.array(["ant", "bee", "cat"])[LABELS]),
    dict(x_test=IMAGES[:6], y_test=LABELS[:6] * 1, x_val=IMAGES[6:12], y_val=LABELS[6:12])],
    ids=str)
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
    words = ["made.npz does not hold what is needed", "x_train and y_train, optionally"]
    with one_sentence(capsys, *words):
        load(settings, "made.npz")
    pathlib.Path("made.npz").write_text("no zip")
    with one_sentence(capsys, "made.npz does not hold what is needed", "x_train and y_train"):
        load(settings, "made.npz")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which a network has learned from pets/, with new pictures to ask it about."""
    folder = tmp_path_factory.mktemp("journey")
    fill(folder / "pets", number=8)
    flags = ["--dataset", "pets", "--epochs", 1, "--filters", 8, "--image-size", 16]
    finished = process(folder, *flags)
    assert finished.returncode == 0, finished.stderr
    fill(folder / "new/monday", ["red"], 2, seed=3)
    fill(folder / "new", ["blue"], 60, seed=4)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


def test_files_folders_and_wildcards_are_asked_and_drawn(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    with pytest.raises(SystemExit) as ended:
        script.main(["--dataset", "pets", "--predict", "new", "pets/r*/0.png", "none.png",
                     "broken.jpg"])
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith(("new", "pets"))]
    assert ended.value.code == 1 and len(lines) == 63, "1: two files could not be read"
    assert "none.png" in said.err and "broken.jpg" in said.err
    assert "60 of 63 drawn" in said.out
    assert "Asking outputs/pets/model.keras (cnn), whose input shape is (16, 16, 3)" in said.out
    assert_drawn(trained / "outputs/pets/predictions.png")
    with Image.open("outputs/pets/predictions.png") as drawn:  # the last row is full
        last_row = np.asarray(drawn.convert("RGB"), int)[-drawn.height // 20:]
        assert np.ptp(last_row[:, -drawn.width // 6:]) > 100
    model = script.keras.models.load_model("outputs/pets/model.keras")
    image, _ = read("pets/red/0.png")
    answer = model.predict(image[np.newaxis], verbose=0)[0]
    assert f"{sorted(COLOURS)[answer.argmax()]} {answer.max():.1%}" in lines[-1]


def test_the_three_likeliest_classes_are_named(settings, monkeypatch, capsys):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(0.001),
                              keras.layers.Flatten(),
                              keras.layers.Dense(5, activation="softmax")], name="cnn")
    about = {"class_names": list("abcde"), "white_on_black": False, "built_in": False}
    figures = []
    monkeypatch.setattr(script, "load_trained_model", lambda *_: (model, about))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *what, **_: figures.append(what))
    picture("red", 1).save("photo.png")
    script.main(["--predict", "photo.png"])
    [line] = [said for said in capsys.readouterr().out.splitlines() if said.startswith("photo")]
    answers = model.predict(read("photo.png", (8, 8, 3))[0][np.newaxis], verbose=0)[0]
    first, second, third, *_ = np.argsort(answers)[::-1]
    likeliest = [f"{'abcde'[i]} {answers[i]:.1%}" for i in np.argsort(answers)[::-1][:3]]
    assert line == "photo.png: " + ", ".join(likeliest)
    [(figure, _)] = figures
    assert "as the network was given them" in figure.get_suptitle()


def test_the_network_of_another_folder_of_this_name_is_not_asked(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    with one_sentence(capsys, "belongs to another data set", str(trained / "pets")):
        script.main(["--dataset", "elsewhere/pets", "--predict", "new"])


def test_a_broken_network_is_one_sentence_with_the_versions(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    network = trained / "outputs/pets/model.keras"
    whole = network.read_bytes()
    network.write_bytes(b"broken")
    with one_sentence(capsys, "finds no network", script.VERSIONS["keras"], "without --predict"):
        script.main(["--dataset", "pets", "--predict", "new"])
    network.write_bytes(whole)


def test_a_file_whose_name_looks_like_a_wildcard_is_the_one_that_is_asked(settings, capsys):
    for name in ("photo1.png", "photo[1].png", "photo2.png"):
        picture("red", 1).save(name)
    assert script.files_to_ask(["photo[1].png"]) == [pathlib.Path("photo[1].png")]
    assert script.files_to_ask(["photo[12].png"]) == [
        pathlib.Path("photo1.png"), pathlib.Path("photo2.png")]
    os.mkdir("empty")
    assert script.files_to_ask(["empty"]) == []
    assert "no files in empty" in capsys.readouterr().err


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
    likeness = np.corrcoef(image.ravel(), expected.ravel())[0, 1]
    assert likeness > (0.85 if "pen" in kinds else 0.975), "a shadow changes nothing"


@pytest.mark.parametrize("border, brightest, expected", [
    (24, 255, True), (25, 255, False), (0, 200, True), (0, 199, False)])
def test_drawings_have_a_dark_border_and_a_bright_spot(border, brightest, expected):
    images = np.zeros((40, 20, 20, 1), "uint8")
    images[:, 4:16, 6:14] = 255
    images[::2] = border  # every second image, so each is looked at by itself
    images[::2, 4:16, 6:14] = brightest
    assert script.describe_drawings(images)["white_on_black"] == expected


@pytest.mark.parametrize("height, expected", [(14, True), (15, False)])  # more by 17 or 25 %
def test_drawings_are_of_a_similar_size(height, expected):
    images = np.zeros((40, 20, 20, 1), "uint8")
    images[:, 3:15, 6:14] = 255  # 12 pixels high
    images[:15, 3:3 + height, 6:14] = 255
    assert script.describe_drawings(images)["white_on_black"] == expected


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
    assert "wider drawing" in script.prepare_drawing(two, (20, 20, 1), about_drawings)[1]
    blank = pen_on_paper(1, pen=0).point(lambda value: 235)
    assert script.prepare_drawing(blank, (20, 20, 1), about_drawings)[1] == "without ink"
    thin = Image.new("L", (300, 300), "white")
    thin.paste(0, (150, 10, 151, 290))
    image, remark = script.prepare_drawing(thin, (20, 20, 1), about_drawings)
    assert remark == "" and image[10, 10] > 200


@pytest.mark.parametrize("light, noise, shadow", [
    (232, 3, 0), (232, 8, 0), (200, 20, 0), (120, 12, 0), (70, 6, 0), (232, 3, 0.35)])
@pytest.mark.parametrize("size", [(400, 400), (800, 600), (200, 200)], ids=str)
def test_blank_paper_under_noise_is_without_ink(about_drawings, size, light, noise, shadow):
    width, height = size
    x = np.arange(width) / width
    values = light * (1 - shadow * x) + np.random.default_rng(0).normal(0, noise, (height, width))
    blank = Image.fromarray(np.clip(values, 0, 255).astype("uint8"))
    assert script.prepare_drawing(blank, (20, 20, 1), about_drawings)[1] == "without ink"


@pytest.mark.parametrize("built_in, size, border, is_prepared", [
    (True, 20, 24, False),  # one of the training images, or like them
    (True, 20, 25, True),
    (True, 20, 230, True),  # of the same size, but black on white
    (True, 60, 0, True),  # a board, a pad
    (True, 60, 230, True),
    (False, 20, 0, False),
    (False, 60, 0, False),  # own drawings of any size
    (False, 60, 127, False),
    (False, 60, 128, True),  # pen on paper
], ids=str)
def test_what_is_prepared_as_pen_on_paper(about_drawings, tmp_path, built_in, size, border,
                                          is_prepared):
    drawn = Image.new("L", (size, size), border)
    drawn.paste(0 if border > 127 else 255, (size // 4, size // 3, size // 2, size // 2))
    about = {**about_drawings, "built_in": built_in}
    drawn.save(tmp_path / "asked.png")
    image, _ = script.read_picture(tmp_path / "asked.png", (20, 20, 1), about)
    as_it_is = np.asarray(drawn.resize((20, 20), Image.Resampling.BICUBIC))[..., np.newaxis]
    assert np.array_equal(image, as_it_is) == (not is_prepared)
    if is_prepared:
        assert image.max() == 255 and image[0].max() == 0  # white ink on a black border


def test_digits_as_files_and_on_paper_are_asked_as_the_network_learned(run, no_pictures, capsys):
    model, _, _ = run(EPOCHS=2)
    about = json.loads(pathlib.Path("outputs/digits/model.json").read_text())
    assert about["built_in"] and about["white_on_black"]
    images = np.round(script.load_digits().images[:20] * 255 / 16).astype("uint8")
    for i, image in enumerate(images):
        Image.fromarray(image).save(f"{i:02}.png")
    for digit in (0, 1, 7):
        pen_on_paper(digit).save(f"paper{digit}.png")
    script.main(["--predict", "0*.png", "1*.png", "paper*.png"])
    printed = [line for line in capsys.readouterr().out.splitlines() if ".png: " in line]
    on_paper = [script.prepare_drawing(pen_on_paper(digit), (8, 8, 1), about)[0]
                for digit in (0, 1, 7)]
    expected = model.predict(np.concatenate([images[..., np.newaxis], on_paper]), verbose=0)
    for line, answer in zip(printed, expected, strict=True):
        assert f": {answer.argmax()} {answer.max():.1%}" in line
