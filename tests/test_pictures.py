"""Own pictures: folders, .npz files, pictures for --predict. Each number is one of issue 14 or 18.

The data are made here. The names that start with `script.` are those of the program.
"""

import json
import os
import pathlib
import re
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

import image_recognition_cnn as script

SIZE = 16


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(script, "IMAGE_SIZE", SIZE)


@pytest.fixture
def sentence_of(capsys):
    """Call something that has to end in stop, and return the one sentence that it printed."""
    def call(function, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            function(*arguments)
        assert ended.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return lines[0]
    return call


def paint(random, brightness, size=SIZE):
    """A grey picture with a bright and a dark half, uint8 (size, size), no two alike."""
    pixels = random.integers(0, 20, (size, size)) + brightness
    pixels[:, : size // 2] //= 3
    return pixels.clip(0, 255).astype("uint8")


def make_folder(folder, classes=("cat", "dog"), number=3, write=None):
    """Write pictures folder/class/0.png ...: the classes have different brightness."""
    random = np.random.default_rng(0)
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            pixels = paint(random, 100 + 100 * place)
            if write is None:
                Image.fromarray(pixels).save(folder / name / f"{i}.png")
            else:
                write(pixels, folder / name / f"{i}")
    return folder


def tiff_of_colours(pixels, order):
    """The bytes of an uncompressed TIFF with 16 bits per colour, which Pillow can't write."""
    height, width, _ = pixels.shape
    kind = order + "u2"
    data = pixels.astype(kind).tobytes()
    start = 8 + 2 + 9 * 12 + 4
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, start), (259, 3, 1, 1),
               (262, 3, 1, 2), (273, 4, 1, start + 6), (277, 3, 1, 3), (278, 4, 1, height),
               (279, 4, 1, len(data))]
    byte_order = "little" if order == "<" else "big"
    out = (b"II" if order == "<" else b"MM") + (42).to_bytes(2, byte_order)
    out += (8).to_bytes(4, byte_order) + len(entries).to_bytes(2, byte_order)
    for tag, field, count, value in entries:
        out += tag.to_bytes(2, byte_order) + field.to_bytes(2, byte_order)
        out += count.to_bytes(4, byte_order)
        if field == 3 and count == 1:
            out += value.to_bytes(2, byte_order) + bytes(2)
        else:
            out += value.to_bytes(4, byte_order)
    return out + bytes(4) + (16).to_bytes(2, byte_order) * 3 + data


def png_of_colours(pixels):
    import tensorflow as tf

    return tf.io.encode_png(pixels.astype("uint16")).numpy()


# 14.1: more than 8 bits

def save_16_bits_0_to_255(pixels, path):
    Image.fromarray(pixels.astype("uint16")).save(f"{path}.png")


def save_12_bits_in_tiff(pixels, path):
    Image.fromarray((pixels.astype(float) / 255 * 4095).round().astype("uint16")).save(f"{path}.tif")


def save_16_bits_big_endian(pixels, path):
    Image.frombytes("I;16B", pixels.shape[::-1], (pixels.astype(">u2") * 257).tobytes()).save(
        f"{path}.tif")


def save_32_bit_integers(pixels, path):
    Image.fromarray(pixels.astype("int32") * 1000).save(f"{path}.tif")


def save_float_0_to_1(pixels, path):
    Image.fromarray((pixels / 255).astype("float32")).save(f"{path}.tif")


def save_16_bit_colours_png(pixels, path):
    pathlib.Path(f"{path}.png").write_bytes(png_of_colours(np.dstack([pixels] * 3)))


def save_12_bit_colours_tiff(pixels, path):
    colours = np.dstack([pixels] * 3).astype("uint16") * 16
    pathlib.Path(f"{path}.tif").write_bytes(tiff_of_colours(colours, "<"))


def save_12_bit_colours_big_endian(pixels, path):
    colours = np.dstack([pixels] * 3).astype("uint16") * 16
    pathlib.Path(f"{path}.tif").write_bytes(tiff_of_colours(colours, ">"))


DEEP = [save_16_bits_0_to_255, save_12_bits_in_tiff, save_16_bits_big_endian, save_32_bit_integers,
        save_float_0_to_1, save_16_bit_colours_png, save_12_bit_colours_tiff,
        save_12_bit_colours_big_endian]


@pytest.mark.parametrize("save", DEEP)
def test_14_1_deep_pictures_are_as_good_as_8_bits(tmp_path, save, capsys):
    """The same pictures in 8 bits and in more come out the same, stretched by the brightest."""
    make_folder(tmp_path / "plain")
    make_folder(tmp_path / "deep", write=save)
    (plain, plain_labels), _, _, none = script.read_folder(tmp_path / "plain")
    (deep, labels), _, _, (low, high) = script.read_folder(tmp_path / "deep")
    assert none is None and low == 0 and list(labels) == list(plain_labels)
    stretched = plain.astype(float) * 255 / plain.max()
    assert np.abs(deep - stretched).max() <= 1.5, "one step of rounding"
    script.check_images(deep, "deep")
    assert f"6 pictures have more than 8 bits: their values from 0 to {high:g}" in \
        capsys.readouterr().out
    # --predict prepares the same file in the same way, by what is stored with the model
    about = json.loads(json.dumps({"white_on_black": False, "ink_share": 1, "pixel_range":
                                   [low, high]}))
    path = sorted((tmp_path / "deep" / "dog").iterdir())[1]
    picture, _ = script.prepare_picture(str(path), (SIZE, SIZE, 3), about)
    assert (picture == deep[4]).all()


def test_14_1_one_scale_from_training_and_no_wrap(tmp_path, capsys):
    """A dim picture stays dim; test pictures above the range are clipped; 8 bits stay as they are."""
    values = np.arange(256).reshape(16, 16).astype("uint16")
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
    Image.fromarray(values * 8).save(tmp_path / "train/a/0.png")  # to 2040
    Image.fromarray(values * 4).save(tmp_path / "train/a/1.png")  # half as bright
    Image.fromarray(values.astype("uint8")).save(tmp_path / "train/b/0.png")
    Image.fromarray(values.astype("uint8")).save(tmp_path / "train/b/1.png")
    Image.fromarray(values * 100).save(tmp_path / "test/a/0.png")  # to 25500
    Image.fromarray(values.astype("float32") * 8 - 100).save(tmp_path / "test/b/0.tif")
    (x_train, _), _, (x_test, _), pixel_range = script.read_folder(tmp_path)
    assert pixel_range == (0, 2040)
    assert (x_train[0, ..., 0] == values).all()
    assert np.abs(x_train[1, ..., 0] - values / 2).max() <= 0.5
    assert (x_train[2, ..., 1] == values).all(), "8 bits keep 0 to 255 beside others"
    assert (x_test[0, ..., 0] == (values.astype(float) * 12.5).clip(0, 255).round()).all()
    assert x_test[1].min() == 0


def test_14_1_negative_values_in_training_are_black(tmp_path):
    for name, values in (("a", [-50, 150]), ("b", [0, 50])):
        (tmp_path / name).mkdir()
        for i in range(2):
            pixels = np.repeat(values, 8).astype("float32").reshape(1, 16).repeat(16, axis=0)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.tif")
    (images, _), _, _, pixel_range = script.read_folder(tmp_path)
    assert pixel_range == (-50, 150)
    assert [list(images[i, 8, [2, 13], 0]) for i in (0, 2)] == [[0, 255], [64, 128]]


@pytest.mark.parametrize("largest, white", [(1, 1), (200, 255), (900, 1023), (3000, 4095),
                                            (9000, 16383), (40_000, 65535), (2e6, 2e6)])
def test_14_1_model_of_8_bits_and_deep_picture(tmp_path, largest, white, capsys):
    values = np.linspace(0, largest, 256).reshape(16, 16)
    values = values.astype("float32") if largest == 1 else values.astype("int32")
    Image.fromarray(values).save(tmp_path / "a.tif")
    picture = script.read_picture(tmp_path / "a.tif", 16, None)
    assert np.abs(picture[..., 2] - values / white * 255).max() <= 0.51
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and f"to {white:g} (white)" in lines[0] and "a.tif" in lines[0]


def test_14_1_unsigned_32_bits_nan_and_signed(tmp_path):
    """Unsigned 32 bits are not taken for negative ones; NaN is black; negative values count."""
    values = np.linspace(0, 4e9, 256).reshape(16, 16)
    image = Image.frombytes("I", (16, 16), values.astype("uint32").astype("<i4").tobytes())
    image.save(tmp_path / "signed.tif")
    tag = (339).to_bytes(2, "little") + bytes([3, 0, 1, 0, 0, 0])  # sample format: 2 is signed
    data = (tmp_path / "signed.tif").read_bytes()
    assert data.count(tag + b"\2") == 1
    (tmp_path / "unsigned.tif").write_bytes(data.replace(tag + b"\2", tag + b"\1"))
    wide = values.astype("float32")
    wide[0, :2] = [np.nan, np.inf]
    wide[0, 2] = -4e9
    Image.fromarray(wide).save(tmp_path / "nan.tif")
    assert script.deep_limits(tmp_path / "nan.tif") == (-4e9, 4e9)
    picture = script.read_picture(tmp_path / "nan.tif", 16, (-4e9, 4e9))[..., 0]
    assert list(picture[0, :3]) == [0, 255, 0] and picture[0, 3] == 129
    assert script.deep_limits(tmp_path / "unsigned.tif") == (0, 4e9)
    picture = script.read_picture(tmp_path / "unsigned.tif", 16, (0, 4e9))[..., 0]
    assert (np.diff(picture.ravel().astype(int)) >= 0).all() and picture.max() == 255


@pytest.mark.parametrize("spread, stops", [(0, True), (1, True), (3, True), (4, False)])
def test_14_1_constant_images_stop(spread, stops, sentence_of):
    images = np.full((50, 8, 8, 3), 7, "uint8")
    images[:, 0, 0, 1] += spread
    images[:3, 1] = 200  # a few good ones don't save it
    if stops:
        said = sentence_of(script.check_images, images, "x/y")
        assert "--dataset x/y: 47 of 50 images are of one shade" in said
        assert "from 7 to 200" in said
    else:
        script.check_images(images, "x/y")


def test_14_1_folder_of_zeros_and_ones_stops(tmp_path, sentence_of):
    """8 bits that hold 0 and 1, as masks do: the reader takes them, check_images stops."""
    make_folder(tmp_path, write=lambda x, path: Image.fromarray(x // 128).save(f"{path}.png"))
    (images, _), _, _, _ = script.read_folder(tmp_path)
    assert "multiply these by 255" in sentence_of(script.check_images, images, tmp_path)


# pictures of all kinds

def upright():
    """A picture whose corners all differ, (40, 60, 3) uint8."""
    pixels = np.zeros((40, 60, 3), "uint8")
    pixels[:20, :30] = [250, 10, 10]
    pixels[:20, 30:] = [10, 250, 10]
    pixels[20:, :30] = [10, 10, 250]
    pixels[20:, 30:] = [240, 240, 10]
    return Image.fromarray(pixels)


WAYS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


@pytest.mark.parametrize("orientation", sorted(WAYS))
@pytest.mark.parametrize("kind", ["jpg", "large jpg", "png", "tif 8 bits", "tif 16 bits", "png 16 bits"])
def test_pictures_are_upright(tmp_path, orientation, kind):
    picture = upright()
    if kind == "large jpg":
        picture = picture.resize((960, 640), Image.Resampling.NEAREST)
    expected = np.asarray(ImageOps.fit(picture, (10, 10)))[[2, 2, 7, 7], [2, 7, 2, 7]].astype(int)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = picture.transpose(WAYS[orientation])
    ending = [ending for ending in ("jpg", "png", "tif") if ending in kind][0]
    path = tmp_path / f"a.{ending}"
    if "bits" in kind:
        turned = turned.convert("L")
        if "16" in kind:
            turned = Image.fromarray(np.asarray(turned).astype("uint16") * 257)
        expected = np.asarray(ImageOps.fit(picture.convert("L"), (10, 10)).convert("RGB"))[
            [2, 2, 7, 7], [2, 7, 2, 7]].astype(int)
        turned.save(path, exif=exif)
    else:
        turned.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if "jpg" in kind else {}))
    found = script.read_picture(path, 10, (0, 65535))
    assert np.abs(found[[2, 2, 7, 7], [2, 7, 2, 7]] - expected).max() <= 12


def test_pictures_of_all_modes(tmp_path):
    """A dark square, transparent around it or white around it: dark on white in every mode."""
    alpha = np.zeros((20, 20), "uint8")
    alpha[5:15, 5:15] = 255
    black = Image.new("L", (20, 20), 0)
    alpha = Image.fromarray(alpha)
    flat = ImageOps.invert(alpha)
    palette_with_hole = Image.merge("RGBA", [black, black, black, alpha]).convert("P")
    palette_with_hole.putpixel((0, 0), palette_with_hole.getpixel((0, 0)))
    pictures = {
        "rgba.png": Image.merge("RGBA", [black, black, black, alpha]),
        "la.png": Image.merge("LA", [black, alpha]),
        "palette.png": flat.convert("P"), "bits.png": flat.convert("1"), "grey.png": flat,
        "colour.bmp": flat.convert("RGB"), "cmyk.jpg": flat.convert("RGB").convert("CMYK"),
        "cmyk.tif": flat.convert("RGB").convert("CMYK"), "ycc.jpg": flat.convert("RGB"),
        "hole.gif": Image.merge("RGBA", [black, black, black, alpha]),
        "hole.webp": Image.merge("RGBA", [black, black, black, alpha]),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    transparent_colour = Image.new("RGB", (20, 20), (1, 2, 3))
    transparent_colour.paste((0, 0, 0), (5, 5, 15, 15))
    transparent_colour.save(tmp_path / "key.png", transparency=(1, 2, 3))
    for path in sorted(tmp_path.iterdir()):
        found = script.read_picture(path, 20, None)
        assert found.shape == (20, 20, 3) and found.dtype == "uint8"
        assert found[10, 10].max() < 20, path.name
        assert found[1, 1].min() > 235 and found[18, 18].min() > 235, path.name


def test_unreadable_files_are_named_and_left_out(tmp_path, capsys):
    make_folder(tmp_path)
    (tmp_path / "cat/text.png").write_text("no picture")
    (tmp_path / "cat/.DS_Store").write_bytes(bytes(99))
    (tmp_path / "cat/Thumbs.db").write_bytes(bytes(99))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "__MACOSX/cat").mkdir(parents=True)
    Image.new("1", (9, 9)).save(tmp_path / "dog/bomb.png")
    bomb = bytearray((tmp_path / "dog/bomb.png").read_bytes())
    bomb[16:24] = (20_000).to_bytes(4, "big") * 2  # the header says 400 megapixels
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (tmp_path / "dog/bomb.png").write_bytes(bomb)
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 255, (99, 99, 3)).astype("uint8"))
    noise.save(tmp_path / "dog/cut.jpg")
    cut = (tmp_path / "dog/cut.jpg").read_bytes()
    (tmp_path / "dog/cut.jpg").write_bytes(cut[:len(cut) // 2])
    (images, labels), val, test, _ = script.read_folder(tmp_path)
    errors = capsys.readouterr().err.splitlines()
    assert sorted(line.split("Skipped ")[1].split(",")[0].split("/")[-1] for line in errors) == [
        "bomb.png", "cut.jpg", "text.png"]
    assert images.shape == (6, SIZE, SIZE, 3) and list(labels) == ["cat"] * 3 + ["dog"] * 3
    assert val is None and test is None
    brightness = images.max(axis=(1, 2, 3))
    assert (brightness[:3] < 130).all() and (brightness[3:] > 190).all(), "gaps are closed in order"


def test_what_is_in_no_class_folder_is_named(tmp_path, capsys):
    make_folder(tmp_path)
    make_folder(tmp_path / "cat", ["more"])
    (tmp_path / "labels.csv").write_text("no picture")
    script.read_folder(tmp_path)
    assert capsys.readouterr().err == (
        f"Warning: Skipped {tmp_path}/cat/more: only files directly in a class folder are read.\n")
    (tmp_path / "cat/more/0.png").rename(tmp_path / "0.PNG")
    script.read_folder(tmp_path)
    assert f"Skipped what is in no class folder of {tmp_path}: 1 picture" in capsys.readouterr().err


def test_test_images_that_are_training_images_are_named(tmp_path, settings, capsys):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, SIZE, SIZE, 1)).astype("uint8")
    labels = np.arange(60) % 2
    tested = random.integers(0, 256, (10, SIZE, SIZE, 1)).astype("uint8")
    tested[3] = images[0]
    tested[4] = images[59]
    tested[5] = images[20] // 2  # of another brightness: not the same
    (tmp_path / "x.npz").write_bytes(b"")
    settings(DATASET=str(tmp_path / "x.npz"), FILTERS=[8])
    others = random.integers(0, 256, (10, SIZE, SIZE, 1)).astype("uint8")
    for part, number in (("test", 2), ("validation", 2), ("none", 0)):
        x_test, x_val = others, others // 2
        if part == "test":
            x_test = tested
        if part == "validation":
            x_val = tested
        np.savez(tmp_path / "x.npz", x_train=images, y_train=labels, x_test=x_test,
                 y_test=labels[:10], x_val=x_val, y_val=labels[:10])
        script.load_data()
        printed = capsys.readouterr().err
        found = re.findall(r"(\d+) of the 10 (\w+) images are training images", printed)
        assert found == ([(str(number), part)] if number else [])


# 14.12: names that are not UTF-8

@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names are UTF-8 there")
def test_14_12_names_that_are_not_utf_8(tmp_path, capsys):
    dog = "狗".encode("gbk")
    for raw in (dog, "狗".encode(), "Bär".encode("latin-1"), b"\x81\x8d", b"cat"):
        os.mkdir(os.fsencode(tmp_path) + b"/" + raw)
        for i in range(3):
            picture = Image.fromarray(np.full((9, 9), i * 10, "uint8"))
            picture.save(os.fsdecode(os.fsencode(tmp_path) + b"/" + raw + b"/%d.png" % i))
    with open(os.fsencode(tmp_path) + b"/" + dog + b"/\xb9.png", "w") as file:
        file.write("no picture")
    (images, labels), _, _, _ = script.read_folder(tmp_path)
    class_names = script.sort_class_names(labels)
    assert sorted(class_names) == sorted(["cat", "狗", "狗 (2)", "Bär", "\\x81\\x8d"])
    assert json.loads(json.dumps(class_names).encode()) == class_names
    "".join(class_names).encode("utf-8")
    numbers = script.number_labels(labels, class_names)
    assert list(np.bincount(numbers)) == [3] * 5 and class_names[numbers[0]] == labels[0]
    said = capsys.readouterr()
    said.out.encode("utf-8"), said.err.encode("utf-8")
    assert said.out.count("is not UTF-8") == 3 and "狗/¹.png" in said.err


# 14.13: layouts

def lay_out(tmp_path, *paths):
    """Write two pictures into each of the folders."""
    for number, path in enumerate(paths):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        for i in range(2):
            pixels = np.full((9, 9, 3), 10 * number + i, "uint8")
            Image.fromarray(pixels).save(tmp_path / path / f"{i}.png")


@pytest.mark.parametrize("names, parts", [
    (("train", "test"), (4, None, 4)), (("Training", "Testing"), (4, None, 4)),
    (("TRAIN", "Valid"), (4, None, 4)), (("train", "validation"), (4, None, 4)),
    (("train", "val", "test"), (4, 4, 4)), (("Train", "VALID", "Test"), (4, 4, 4)),
    (("train",), (4, None, None)),
])
def test_14_13_parts_in_any_spelling(tmp_path, names, parts, capsys):
    for name in names:
        lay_out(tmp_path, f"{name}/cat", f"{name}/dog")
    train, val, test, _ = script.read_folder(tmp_path)
    sizes = [None if part is None else len(part[0]) for part in (train, val, test)]
    assert tuple(sizes) == parts
    assert list(train[1]) == ["cat", "cat", "dog", "dog"]
    said = capsys.readouterr().out.splitlines()
    if len(names) == 3:
        assert len(said) == 1 and f"{names[1]} is taken for the validation part" in said[0]
    elif names[-1].lower().startswith("val"):
        assert len(said) == 1 and f"{names[1]} is taken for the test part" in said[0]
    else:
        assert not said


def test_14_13_a_class_may_be_called_train(tmp_path):
    lay_out(tmp_path, "train", "car", "plane")
    (_, labels), val, test, _ = script.read_folder(tmp_path)
    assert sorted(set(labels)) == ["car", "plane", "train"] and val is None and test is None


def test_14_13_train_beside_a_folder_that_is_no_part(tmp_path, capsys):
    lay_out(tmp_path, "train/a", "train/b", "models")
    (_, labels), _, _, _ = script.read_folder(tmp_path)
    assert sorted(set(labels)) == ["a", "b"]
    assert "models, which is neither train nor val nor test" in capsys.readouterr().err


LAYOUTS = [
    (["imgs/cat", "imgs/dog"], "found pictures in X/imgs/*: did you mean --dataset X/imgs?"),
    (["a/b/cat", "a/b/dog"], "did you mean --dataset X/a/b?"),
    (["imgs/train/cat", "imgs/train/dog", "imgs/test/cat"], "did you mean --dataset X/imgs?"),
    (["train/x/cat", "train/x/dog", "test/cat"], "did you mean --dataset X/train/x?"),
    (["train/cat", "train/dog", "test"], "test has no class folders, so its pictures "
     "have no labels. Train with --dataset X/train,"),
    (["train/cat", "train/dog", "valid"], "valid has no class folders, so its"),
    (["train", "test"], "--dataset X/train has no class folders, it holds 2 files"),
    (["test/cat", "test/dog"], "has a folder test, but no folder train"),
    (["train/cat", "Training/cat"], "two folders for the same part, Training and train"),
    (["cat"], "too few classes: cat is the only folder"),
    (["."], "no class folders, it holds 2 files"),
    (["train/cat", "train/dog", "test/bird"], "bird is a class in X/test, but not in X/train"),
    (["train/Cat", "train/dog", "val/cat", "val/dog"], "cat is a class in X/val, but not in"),
]


@pytest.mark.parametrize("paths, part_of_sentence", LAYOUTS)
def test_14_13_layout_gets_the_fitting_sentence(tmp_path, paths, part_of_sentence, sentence_of):
    if sys.platform != "linux" and "Training" in str(paths):
        pytest.skip("one folder there")
    lay_out(tmp_path, *paths)
    said = sentence_of(script.read_folder, str(tmp_path))
    assert part_of_sentence.replace("X", str(tmp_path)) in said
    assert "--dataset" in said


def test_14_13_empty_folders_and_class_that_is_not_tested(tmp_path, sentence_of, capsys):
    for name in ("a", "b"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    assert "too few classes: no pictures in its folders (a, b)" in sentence_of(
        script.read_folder, tmp_path / "empty")
    lay_out(tmp_path / "x", "train/cat", "train/dog", "test/cat", "extra/cat")
    (tmp_path / "x/train/nothing").mkdir()
    train, _, test, _ = script.read_folder(tmp_path / "x")
    said = capsys.readouterr().err
    assert "has no images of dog" in said and "extra, which is neither" in said
    assert "nothing, which holds no pictures" in said and len(said.splitlines()) == 3
    for file in (tmp_path / "x/train/dog").iterdir():
        file.write_text("no picture")
    with pytest.raises(SystemExit):
        script.read_folder(tmp_path / "x")
    said = capsys.readouterr().err.splitlines()
    assert "too few classes with readable images: cat" in said[-1]


# 18.6: speed and memory

def test_18_6_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 255, (12, 16, 3)).astype("uint8"))
    for kind in ("RGB", "L", "CMYK"):
        path = tmp_path / f"{kind}.jpg"
        smooth.convert(kind).resize((1600, 1200), Image.Resampling.BICUBIC).save(path, quality=95)
        small = script.open_picture(path, None, smallest_size=(128, 128))
        assert small.size == (200, 150), "one eighth, and no smaller than wanted"
        whole = script.cut_square(script.open_picture(path, None), (64, 64, 3))
        found = script.read_picture(path, 64, None)
        assert np.abs(found.astype(int) - whole).mean() < 2
    assert script.open_picture(path, None, smallest_size=(700, 700)).size == (1600, 1200)


def test_18_6_many_pictures_in_order_on_all_cores_with_a_bar(tmp_path, capsys):
    """501 pictures get a bar, 500 none; every picture is at its place, whatever thread read it."""
    for name in "ab":
        (tmp_path / name).mkdir()
    for i in range(501):
        pixels = np.full((9, 9, 3), [i % 256, i // 256, 0], "uint8")
        Image.fromarray(pixels).save(tmp_path / "ab"[i % 2] / f"{i:03}.png")
    files = sorted((tmp_path / "a").iterdir()) + sorted((tmp_path / "b").iterdir())
    numbers = [int(file.stem) for file in files]
    images, is_read = script.read_pictures(files, None)
    assert is_read.all()
    assert list(images[:, 0, 0, 0] + 256 * images[:, 0, 0, 1].astype(int)) == numbers
    assert "Reading 501 pictures:" in capsys.readouterr().out
    script.read_pictures(files[1:], None)
    assert capsys.readouterr().out == ""


def test_18_6_memory_is_one_array(tmp_path, monkeypatch):
    """NumPy's own allocations at the peak: one byte for each byte of pixels, and a little."""
    import tracemalloc

    monkeypatch.setattr(script, "IMAGE_SIZE", 128)
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype("uint8")
    (tmp_path / "a").mkdir()
    Image.fromarray(noise).save(tmp_path / "a/0.png")
    (tmp_path / "a/broken.png").write_text("no picture")
    files = [tmp_path / "a/broken.png"] + [tmp_path / "a/0.png"] * 200
    tracemalloc.start()
    images, _ = script.read_pictures(files, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(images) == 200 and (images == noise).all()
    assert peak < 1.3 * images.nbytes


# 14.5: pen on paper

def digit_images():
    images, labels = load_digits(return_X_y=True)
    images = (images * 255 / 16).round().astype("uint8").reshape(-1, 8, 8)
    return images, labels


def centred(image):
    """The ink in the middle of 12 x 12 pixels, as the makers of EMNIST cut out their letters."""
    columns = np.flatnonzero((image > 100).any(axis=0))
    image = image[:, columns[0]: columns[-1] + 1]
    space = 12 - image.shape[1]
    return np.pad(image, ((2, 2), (space // 2, space - space // 2)))


def test_14_5_white_on_black_is_seen_in_the_images():
    digits = digit_images()[0][..., None]
    framed = np.pad(digits, ((0, 0), (4, 4), (4, 4), (0, 0)))
    for images in (digits, framed):
        assert script.looks_white_on_black(images) is True
        assert script.looks_white_on_black(255 - images) is False
    assert script.looks_white_on_black(np.repeat(digits, 3, axis=3)) is False, "three channels"
    noise = np.random.default_rng(0).integers(0, 255, (50, 9, 9, 1)).astype("uint8")
    assert script.looks_white_on_black(noise) is False
    assert script.ink_share(digits) == 1
    assert script.ink_share(framed) == 0.5
    assert script.ink_share(np.zeros((5, 8, 8, 1), "uint8")) == 1


def test_14_5_pen_on_paper_with_a_foreign_npz(tmp_path):
    """30 of 30 right: an .npz that has no known name, and photos of its digits on paper.

    A nearest-neighbour classifier stands for the network; the training images have a border.
    """
    images, labels = digit_images()
    framed = np.array([centred(image) for image in images]).repeat(2, axis=1).repeat(2, axis=2)
    np.savez(tmp_path / "letters.npz", x_train=framed[60:], y_train=labels[60:])
    (x_train, y_train), _, _, _ = script.read_npz(tmp_path / "letters.npz")
    about = {"white_on_black": script.looks_white_on_black(x_train),
             "ink_share": script.ink_share(x_train), "pixel_range": None}
    assert about["white_on_black"] and about["ink_share"] == pytest.approx(16 / 24)
    classifier = KNeighborsClassifier(1).fit(x_train.reshape(len(x_train), -1), y_train)
    known = classifier.predict(framed[:60].reshape(60, -1)) == labels[:60].astype(str)
    right = {"white on black": 0, "dark on white": 0}
    for i in np.flatnonzero(known)[:30]:  # that it knows as images; are they known as photos?
        drawing = Image.fromarray(images[i]).resize((160, 160), Image.Resampling.NEAREST)
        drawing = ImageOps.expand(drawing, (90 + 3 * int(i), 60, 90, 60 + 4 * int(i)))
        paper = Image.fromarray((225 - np.asarray(drawing) * 0.75).astype("uint8"))
        for picture, taken in ((drawing, "white on black"), (paper, "dark on white")):
            picture.convert("RGB").save(tmp_path / "photo.png")
            found, remark = script.prepare_picture(tmp_path / "photo.png", (24, 24, 1), about)
            assert found.shape == (24, 24, 1) and remark == f"taken for {taken}"
            right[taken] += classifier.predict(found.reshape(1, -1))[0] == str(labels[i])
    assert right == {"white on black": 30, "dark on white": 30}


def test_14_5_drawing_is_cut_out_and_framed(tmp_path):
    """Ink of 20 of 28 pixels in the middle, also for a model that is not square; empty paper."""
    pixels = np.full((300, 500), 230, "uint8")
    pixels[100:180, 350:390] = 20
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.new("L", (50, 50), 230).save(tmp_path / "empty.png")
    about = {"white_on_black": True, "ink_share": 20 / 28, "pixel_range": None}
    found, remark = script.prepare_picture(tmp_path / "a.png", (28, 28, 1), about)
    rows, columns, _ = np.nonzero(found > 128)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 23, 9, 18)
    Image.fromarray(pixels[:, 100:].T).save(tmp_path / "wide.png")  # 80 pixels wide, 40 high
    found, _ = script.prepare_picture(tmp_path / "wide.png", (28, 14, 1), about)
    rows, columns, _ = np.nonzero(found > 128)
    assert (columns.min(), columns.max()) == (2, 11) and 11 <= rows.min() <= rows.max() <= 16
    found, remark = script.prepare_picture(tmp_path / "empty.png", (28, 28, 1), about)
    assert remark == "taken for dark on white, no ink found" and found.max() < 30


def test_photo_is_prepared_as_in_the_folder(tmp_path, capsys):
    make_folder(tmp_path / "x")
    (images, _), _, _, pixel_range = script.read_folder(tmp_path / "x")
    about = {"white_on_black": False, "ink_share": 1, "pixel_range": pixel_range}
    path = tmp_path / "x/dog/2.png"
    found, remark = script.prepare_picture(path, (SIZE, SIZE, 3), about)
    assert (found == images[5]).all() and remark is None
    found, _ = script.prepare_picture(path, (SIZE, SIZE, 1), about)
    assert found.shape == (SIZE, SIZE, 1) and (found[..., 0] == images[5, ..., 0]).all()
    path.write_text("no picture")
    for is_drawing in (True, False):
        about["white_on_black"] = is_drawing
        assert script.prepare_picture(path, (SIZE, SIZE, 3), about) == (None, None)
        assert "Skipped" in capsys.readouterr().err


# 14.2 and 14.15: .npz files

def arrays(**changes):
    labels = np.arange(60) % 2
    noise = np.random.default_rng(0).integers(0, 40, (60, 16, 16))
    images = (noise + 200 * labels[:, None, None]).astype("uint8")
    found = {"x_train": images, "y_train": labels, "x_test": images[:20], "y_test": labels[:20]}
    found.update(changes)
    return {name: array for name, array in found.items() if array is not None}


def write_npz(folder, **changes):
    np.savez(folder / "a.npz", **arrays(**changes))
    return folder / "a.npz"


def mended(path, said):
    """Run the line of NumPy that a sentence ends with on the file's arrays, and store them again."""
    line = said.split(": ")[-1]
    with np.load(path) as file:
        names = dict(file)
    exec(line, {"np": np}, names)
    names.pop("keep", None)
    np.savez(path, **names)


GOOD = arrays()["x_train"]
SCALES = {
    "uint8 0 to 1": (GOOD > 128).astype("uint8"), "uint8 0 to 16": GOOD // 15,
    "float 0 to 1": GOOD / 255, "float32 0 to 1": (GOOD / 255).astype("float32"),
    "float 0 to 255": GOOD.astype(float), "int64 0 to 255": GOOD.astype("int64"),
    "float -1 to 1": GOOD / 127.5 - 1, "int8": (GOOD.astype(int) - 128).astype("int8"),
    "bool": GOOD > 128, "uint16 to 4095": GOOD.astype("uint16") * 16,
    "standardized": (GOOD - GOOD.mean()) / GOOD.std(),
}


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("part", ["train", "test"])
def test_14_2_wrong_range_gets_the_line_that_mends_it(tmp_path, kind, part, sentence_of):
    images = SCALES[kind]
    number = {"train": 60, "test": 20}[part]
    path = write_npz(tmp_path, **{f"x_{part}": images[:number]})
    said = sentence_of(script.read_npz, path)
    assert f"x_{part} holds {images.dtype} from {images[:number].min():g} to" in said
    if kind == "uint8 0 to 1":
        assert "multiply by 255" in said
    mended(path, said)
    train, _, test, pixel_range = script.read_npz(path)
    found = {"train": train, "test": test}[part][0][..., 0]
    assert found.dtype == "uint8" and pixel_range is None
    if kind in ("uint8 0 to 1", "bool"):
        assert set(np.unique(found)) == {0, 255}
    elif kind in ("uint8 0 to 16", "standardized", "float -1 to 1", "int8"):
        assert np.corrcoef(found.ravel(), GOOD[:number].ravel())[0, 1] > 0.99
        assert found.max() == 255
    else:
        assert np.abs(found.astype(int) - GOOD[:number]).max() <= 1


SHAPES = {
    "flat": (GOOD.reshape(60, 256), "reshape(-1, 16, 16)"),
    "colours first": (np.stack([GOOD] * 3, axis=1), "transpose(0, 2, 3, 1)"),
    "transparency": (np.stack([GOOD] * 4, axis=3), "[..., :3]"),
    "number last": (np.moveaxis(GOOD, 0, -1), "np.moveaxis(x_train, -1, 0)"),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_14_15_wrong_shape_gets_the_line_that_mends_it(tmp_path, kind, sentence_of):
    images, line = SHAPES[kind]
    path = write_npz(tmp_path, x_train=images, x_test=None, y_test=None)
    said = sentence_of(script.read_npz, path)
    assert line in said and "it takes uint8 (number, height, width) or (number, height, width, 3)" \
        in said.lower()
    mended(path, said)
    (found, _), _, _, _ = script.read_npz(path)
    assert found.shape[:3] == (60, 16, 16) and (found[..., 0] == GOOD).all()


@pytest.mark.parametrize("changes, part_of_sentence", [
    ({"x_train": GOOD[:, :4, :4]}, "8 to 512"), ({"x_train": np.zeros((60, 8, 600), "uint8")}, "512"),
    ({"y_train": np.zeros(59)}, "59 labels"), ({"x_test": GOOD[:20, :8]}, "They must be alike"),
    ({"x_train": GOOD.astype(str)}, "not pixels"), ({"x_test": GOOD[:0], "y_test": GOOD[:0, 0, 0]},
                                                    "x_test holds no images"),
    ({"x_train": np.where(GOOD < 9, np.nan, GOOD)}, "np.nan_to_num(x_train"),
    ({"y_train": np.zeros(60)}, "too few classes"), ({"y_train": np.arange(60)}, "60 different labels"),
    ({"y_test": np.arange(20)}, "but not in x_train"), ({"y_test": None}, "no y_test"),
    ({"x_test": None}, "no x_test"), ({"x_train": None}, "no x_train"),
    ({"y_train": np.array([{}] * 60)}, "y_train = y_train.astype(str)"),
    ({"x_train": np.array([1, "a", None], object)}, "any program"),
])
def test_14_15_other_mistakes_get_their_sentence(tmp_path, changes, part_of_sentence, sentence_of):
    said = sentence_of(script.read_npz, write_npz(tmp_path, **changes))
    assert part_of_sentence in said and str(tmp_path / "a.npz") in said


def test_14_15_not_an_npz_at_all(tmp_path, sentence_of):
    (tmp_path / "text.npz").write_text("no zip")
    np.save(tmp_path / "array.npy", GOOD)
    os.rename(tmp_path / "array.npy", tmp_path / "array.npz")
    for name in ("text.npz", "array.npz"):
        assert "is no .npz file" in sentence_of(script.read_npz, tmp_path / name)
    path = write_npz(tmp_path)
    data = bytearray(path.read_bytes())
    data[200:300] = bytes(100)
    path.write_bytes(data)
    assert "can't be read" in sentence_of(script.read_npz, path)


def test_14_15_nan_and_one_hot_labels_and_the_lines_that_mend_them(tmp_path, sentence_of):
    labels = arrays()["y_train"].astype(float)
    labels[5:9] = np.nan
    path = write_npz(tmp_path, y_train=labels)
    said = sentence_of(script.read_npz, path)
    assert "NaN" in said and "in 4 of 60 labels" in said
    mended(path, said)
    (x_train, found), _, _, _ = script.read_npz(path)
    assert len(x_train) == 56 and sorted(set(found)) == ["0", "1"]
    for one_hot in (np.eye(2)[arrays()["y_train"]], np.eye(5, dtype="uint8")[arrays()["y_train"]]):
        path = write_npz(tmp_path, y_train=one_hot)
        said = sentence_of(script.read_npz, path)
        assert "one-hot" in said
        mended(path, said)
        (_, found), _, _, _ = script.read_npz(path)
        assert list(found) == [str(label) for label in arrays()["y_train"]]
    several = np.ones((60, 3))
    assert "one label for each image" in sentence_of(
        script.read_npz, write_npz(tmp_path, y_train=several))
    measured = np.linspace(0.5, 9, 60)
    assert "fractions such as 0.5" in sentence_of(
        script.read_npz, write_npz(tmp_path, y_train=measured))


@pytest.mark.parametrize("labels, names", [
    (np.array(["cat ", "cat", " dog"] * 20), ["cat", "dog"]),
    (np.array([b"zero", b"one", b"zero "] * 20), ["one", "zero"]),
    (np.array(["猫", "狗 "] * 30), ["狗", "猫"]),
    (np.array(["狗".encode("gbk"), "猫".encode()] * 30), ["狗", "猫"]),
    (np.arange(60).reshape(60, 1) % 12, [str(i) for i in range(12)]),
    (np.array(["9", "10", "1"] * 20), ["1", "9", "10"]),
    (np.array([-1.0, 10.0, 9.0] * 20), ["-1", "9", "10"]),
    (np.array([True, False] * 30), ["False", "True"]),
])
def test_14_15_labels_become_clean_names_in_order(tmp_path, labels, names):
    path = write_npz(tmp_path, y_train=labels, x_test=None, y_test=None)
    (_, found), _, _, _ = script.read_npz(path)
    class_names = script.sort_class_names(found)
    assert class_names == names
    numbers = script.number_labels(found, class_names)
    assert numbers.shape == (60,) and class_names[numbers[7]] == found[7]


def test_14_15_the_word_nan_is_named(tmp_path, capsys):
    labels = np.array(["cat", "nan", "dog"] * 20)
    script.read_npz(write_npz(tmp_path, y_train=labels, x_test=None, y_test=None))
    assert "holds the word nan as a label" in capsys.readouterr().err
    labels[3] = "  "
    with pytest.raises(SystemExit):
        script.read_npz(write_npz(tmp_path, y_train=labels, x_test=None, y_test=None))
    assert "empty labels" in capsys.readouterr().err


@pytest.mark.parametrize("names", [
    ["train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"],
    ["X_train", "Y_train", "X_valid", "Y_valid", "X_test", "Y_test"],
    ["trainX", "trainY", "valX", "valY", "testX", "testY"],
    ["x_train", "y_train", "x_val", "y_val", "x_test", "y_test"],
])
def test_14_15_arrays_under_other_names(tmp_path, names, capsys):
    held = arrays()
    x, y = held["x_train"], held["y_train"]
    np.savez(tmp_path / "a.npz", **dict(zip(names, [x, y[:, None], x[:9], y[:9], x[:7], y[:7]])))
    train, val, test, _ = script.read_npz(tmp_path / "a.npz")
    assert [len(part[0]) for part in (train, val, test)] == [60, 9, 7]
    assert [len(part[1]) for part in (train, val, test)] == [60, 9, 7]
    said = capsys.readouterr().out
    assert ("as x_train" in said) == (names[0] != "x_train")
    assert "is taken for the validation part" in said


def test_14_15_names_that_say_nothing_and_names_twice(tmp_path, sentence_of, capsys):
    held = arrays()
    np.savez(tmp_path / "a.npz", held["x_train"], held["y_train"])
    said = sentence_of(script.read_npz, tmp_path / "a.npz")
    assert "holds arr_0, arr_1" in said and "x_train, y_train" in said
    np.savez(tmp_path / "a.npz", X_train=held["x_train"], train_images=held["x_train"],
             y_train=held["y_train"])
    said = sentence_of(script.read_npz, tmp_path / "a.npz")
    assert "X_train and train_images" in said
    np.savez(tmp_path / "a.npz", images=held["x_train"], labels=held["y_train"], ids=np.arange(60))
    train, val, test, _ = script.read_npz(tmp_path / "a.npz")
    assert len(train[0]) == 60 and val is None and test is None
    assert "images as x_train, labels as y_train" in capsys.readouterr().out


# 14.17: --predict with folders and wildcards

def test_14_17_predict_takes_folders_and_wildcards(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.png", "c[1].png", "d.jpg", "sub/z.png", "sub/y.png", "sub/.hidden",
                 "deep/er/x.png", "empty/.hidden"):
        path = pathlib.Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    expand = script.expand_pictures
    assert expand(["*.png"]) == (["a.png", "b.png", "c[1].png"], [])
    assert expand(["c[1].png", "[ab].png"]) == (["c[1].png", "a.png", "b.png"], [])
    assert expand(["sub", "b.png"]) == ([str(pathlib.Path("sub/y.png")),
                                         str(pathlib.Path("sub/z.png")), "b.png"], [])
    assert expand(["de*/*"])[0] == [str(pathlib.Path("deep/er/x.png"))]
    assert capsys.readouterr().err == ""
    assert expand(["no.png", "*.gif", "deep", "empty", "a.png"]) == (
        ["a.png"], ["no.png", "*.gif", "deep", "empty"])
    said = capsys.readouterr().err.splitlines()
    assert "no.png: there is no such file" in said[0] and "*.gif" in said[1]
    assert "did you mean" in said[2] and str(pathlib.Path("deep/*")) in said[2]
    assert "empty holds no pictures" in said[3] and len(said) == 4
