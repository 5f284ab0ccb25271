"""try_it.html in a real browser: headless Chromium, driven by Playwright.

Skipped where there is no Chromium or no Playwright. The tests of accessibility also take
axe-playwright-python, which brings axe-core along.
"""
import io
import math
import os
import pathlib
import shutil
import tempfile

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="no Playwright: pip install playwright")
import keras  # noqa: E402
from keras import layers  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

import compare_page  # noqa: E402
import image_recognition_cnn as script  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)
DRAWINGS = {"white_on_black": True, "ink_share": 1.0}
PHOTOS = {"white_on_black": False, "ink_share": 1.0}
HOSTILE = "<img src=x onerror=\"document.title='broken in'\"></script><b>"


# --- helpers --------------------------------------------------------------------------------------

def prepared(picture, shape, about):
    """Return a Pillow image as --predict prepares it: (height, width, channels) uint8."""
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        picture.save(file.name, exif=picture.getexif())
        about = {"pixel_range": None, **about}
        return script.prepare_picture(pathlib.Path(file.name), shape, about)[0]


def block(filters, name, batch_normalization):
    """Return the layers of one block of the script's network."""
    norm = [layers.BatchNormalization(momentum=0.6)] if batch_normalization else []
    norm_2 = [layers.BatchNormalization(momentum=0.6)] if batch_normalization else []
    bias = not batch_normalization
    return [
        layers.Conv2D(filters, 3, padding="same", use_bias=bias, bias_initializer="normal"),
        layers.MaxPooling2D(), *norm, layers.ReLU(),
        layers.Conv2D(filters, 3, padding="same", use_bias=bias, bias_initializer="normal"),
        *norm_2, layers.ReLU(name=name),
    ]


def network(images, filters, num_classes, whitening=True, batch_normalization=True,
            augmentation=True):
    """Return the script's network for images, untrained, with a random whitening."""
    normalization = layers.Normalization()
    normalization.adapt(images)
    shift = [layers.RandomTranslation(0.1, 0.1, interpolation="nearest"), layers.RandomFlip()]
    channels = images.shape[3]
    first = layers.Conv2D(8 * channels, 2, use_bias=False, activation="relu", trainable=False)
    blocks = []
    for i, number in enumerate(filters, 1):
        blocks.extend(block(number, f"block_{i}", batch_normalization))
    return keras.Sequential([
        keras.Input(images.shape[1:]), *(shift if augmentation else []), normalization,
        *([first] if whitening else []), *blocks,
        layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dropout(0.2),
        layers.Dense(num_classes, activation="softmax", dtype="float32"),
    ])


# --- fixtures -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def digits():
    """A network trained on digits for a few seconds, and 300 test images with their labels."""
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images * 255 / 16).round().astype("uint8").reshape(-1, 8, 8, 1)
    model = network(images[300:], [32, 64], 10, augmentation=False)
    model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
    model.fit(images[300:], labels[300:], batch_size=32, epochs=6, verbose=0)
    return model, images[:300], labels[:300]


@pytest.fixture(scope="module")
def playwright():
    with sync_api.sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright):
    browser = playwright.chromium.launch(
        executable_path=CHROMIUM, args=compare_page.CHROMIUM_FLAGS)
    yield browser
    browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """A function that writes a page and opens it from disk. At the end: no error, no request."""
    errors, requests = [], []

    def note(message):
        if message.type == "error":  # what the Content-Security-Policy forbids is one, too
            errors.append(message.text)

    def open_page(model, class_names, about, title="trial", browser=browser, **options):
        path = tmp_path / "try_it.html"
        assert script.write_page(model, class_names, about, title, path) is True
        page = browser.new_page(**options)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", note)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    assert errors == []
    assert [url for url in requests if not url.startswith(tmp_path.as_uri())] == []


def keras_answers(model, images):
    """Return the probabilities (number, classes) that Keras computes."""
    return np.asarray(model(images, training=False))


def ten():
    return [str(number) for number in range(10)]


def png(array):
    """Return an array as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def choose(page, content, name="picture.png", kind="image/png"):
    """Choose a picture through the page's file chooser, and wait until it is answered."""
    page.click("[data-mode=picture]")
    with page.expect_file_chooser() as chooser:
        page.locator("#choose").click()
    chooser.value.set_files({"name": name, "mimeType": kind, "buffer": content})
    page.wait_for_timeout(300)


def draw(page, *strokes):
    """Draw strokes, lists of points from 0 to 1, with the mouse on the page's pad."""
    box = page.locator("#pad").bounding_box()
    for stroke in strokes:
        for number, (x, y) in enumerate(stroke):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if number == 0:
                page.mouse.down()
        page.mouse.up()
    page.wait_for_timeout(300)


def arc(x, y, radius, start, end):
    """Return the points of an arc around (x, y) between two angles in degrees."""
    angles = [math.radians(start + (end - start) * i / 9) for i in range(10)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


THREE = arc(0.48, 0.33, 0.16, -150, 90) + arc(0.48, 0.66, 0.18, -90, 150)
ZERO = [(0.5 + (x - 0.5) * 0.7, y) for x, y in arc(0.5, 0.5, 0.3, -90, 270)]


def seen_by(page):
    """Return the small picture that the network was given, (height, width, 3) uint8."""
    values, width, height = page.evaluate("""() => {
        const canvas = document.getElementById("seen");
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [[...pixels.data], canvas.width, canvas.height];
    }""")
    return np.array(values, "uint8").reshape(height, width, 4)[..., :3]


# --- page against Keras ---------------------------------------------------------------------------

def test_answers_of_300_digits_are_those_of_keras(digits, opened):
    model, images, labels = digits
    page = opened(model, ten(), DRAWINGS)
    probabilities, _ = compare_page.answers_of_page(page, images)
    agreement, difference = compare_page.compare(probabilities, keras_answers(model, images))
    assert agreement >= 0.995
    assert difference <= 0.01
    assert (probabilities.argmax(axis=1) == labels).mean() > 0.9  # and it has learned something


@pytest.mark.parametrize("shape, filters, options", [
    ((12, 9, 3), [8], {}),
    ((16, 20, 1), [4, 8, 12], {"whitening": False}),
    ((13, 13, 3), [8, 8], {"batch_normalization": False}),
    ((9, 11, 1), [5], {"whitening": False, "batch_normalization": False, "augmentation": False}),
])
def test_any_form_of_the_network(shape, filters, options, opened):
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (40, *shape), "uint8")
    model = network(images, filters, 3, **options)
    for layer in model.layers:  # averages and scales of their own, as training leaves them
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    page = opened(model, list("abc"), PHOTOS)
    probabilities, _ = compare_page.answers_of_page(page, images)
    _, difference = compare_page.compare(probabilities, keras_answers(model, images))
    assert difference <= 0.01


def test_activations_as_layers_and_a_bias_before_batch_normalization(opened):
    keras.utils.set_random_seed(2)
    images = np.random.default_rng(2).integers(0, 256, (20, 8, 8, 1), "uint8")
    model = keras.Sequential([
        keras.Input((8, 8, 1)), layers.Normalization(mean=100.0, variance=2500.0),
        layers.Conv2D(6, 4, padding="same", bias_initializer="normal"),
        layers.BatchNormalization(scale=False), layers.Activation("relu"),
        layers.MaxPooling2D((2, 3)), layers.BatchNormalization(center=False),
        layers.Flatten(), layers.Dense(4), layers.Activation("softmax"),
    ])
    page = opened(model, list("abcd"), PHOTOS)
    probabilities, _ = compare_page.answers_of_page(page, images)
    assert np.abs(probabilities - keras_answers(model, images)).max() <= 0.01


@pytest.mark.parametrize("layer, word", [
    (layers.Conv2D(3, 3, strides=2), "Conv2D"),
    (layers.DepthwiseConv2D(3), "DepthwiseConv2D"),
    (layers.GlobalAveragePooling2D(), "GlobalAveragePooling2D"),
    (layers.ReLU(max_value=6.0), "ReLU"),
    (layers.Conv2D(3, 3, activation="gelu"), "gelu"),
    (layers.MaxPooling2D(3, strides=1), "MaxPooling2D"),
])
def test_an_unknown_layer_gets_a_sentence_and_no_page(layer, word, tmp_path, capsys):
    model = keras.Sequential([keras.Input((8, 8, 1)), layer, layers.Flatten(),
                              layers.Dense(2, activation="softmax")])
    path = tmp_path / "try_it.html"
    assert script.write_page(model, ["a", "b"], PHOTOS, "trial", path) is False
    assert not path.exists()
    assert word in capsys.readouterr().err


def test_a_weight_too_large_for_16_bits_gets_a_sentence_and_no_page(tmp_path, capsys):
    model = keras.Sequential([keras.Input((64, 64, 1)), layers.Flatten(),
                              layers.Dense(2, kernel_initializer=keras.initializers.Constant(7e4),
                                           activation="softmax")])
    assert script.write_page(model, ["a", "b"], PHOTOS, "t", tmp_path / "t.html") is False
    assert "16 bits" in capsys.readouterr().err


# --- preparation ----------------------------------------------------------------------------------

def pictures():
    """Return pictures of many kinds by name: PIL images."""
    random = np.random.default_rng(0)
    dark_on_white = np.full((301, 200), 240, "uint8")
    dark_on_white[60:221, 90:111] = 30
    dark_on_white[60:80, 50:130] = 60
    noisy = (dark_on_white + random.integers(-15, 15, dark_on_white.shape)).clip(0, 255)
    tiny = np.zeros((5, 4), "uint8")
    tiny[1:5, 2] = 255
    clear = np.zeros((90, 120, 4), "uint8")
    clear[20:70, 50:64] = (10, 20, 90, 255)
    smooth = Image.fromarray(random.integers(0, 256, (9, 13, 3), "uint8")).resize((640, 431))
    return {
        "dark on white": Image.fromarray(dark_on_white),
        "noisy": Image.fromarray(noisy.astype("uint8")),
        "smaller than the network takes": Image.fromarray(tiny),
        "transparent": Image.fromarray(clear),
        "colours": smooth,
        "wide": smooth.resize((500, 37)),
    }


@pytest.mark.parametrize("about, shape", [
    (DRAWINGS, (8, 8, 1)),
    ({"white_on_black": True, "ink_share": 20 / 28}, (28, 28, 1)),
    ({"white_on_black": True, "ink_share": 20 / 28}, (28, 56, 1)),
    ({"white_on_black": True, "ink_share": 0.6}, (30, 18, 1)),
    (PHOTOS, (32, 32, 3)),
    (PHOTOS, (20, 31, 1)),
])
def test_preparation_is_that_of_predict(about, shape, opened):
    model = keras.Sequential([keras.Input(shape), layers.Flatten(),
                              layers.Dense(2, activation="softmax")])
    page = opened(model, ["a", "b"], about)
    for name, picture in pictures().items():
        choose(page, png(np.asarray(picture)))
        expected = prepared(picture, shape, about).astype(int)
        difference = np.abs(seen_by(page).astype(int) - expected)
        assert difference.max() <= 1, name


def test_a_photo_that_lies_on_its_side_is_turned(opened):
    picture = pictures()["colours"]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, exif=exif)
    model = keras.Sequential([keras.Input((16, 16, 3)), layers.Flatten(),
                              layers.Dense(2, activation="softmax")])
    page = opened(model, ["a", "b"], PHOTOS)
    choose(page, file.getvalue(), "photo.jpg", "image/jpeg")
    expected = prepared(Image.open(file), (16, 16, 3), PHOTOS).astype(int)
    assert np.abs(seen_by(page).astype(int) - expected).max() <= 4  # two JPEG decoders


# --- drawing, picture, camera ---------------------------------------------------------------------

def test_a_dense_layer_behind_global_pooling_is_neurons(opened):
    model = keras.Sequential([
        keras.Input((8, 8, 1)), layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(),
        layers.ReLU(), layers.MaxPooling2D(8), layers.Flatten(), layers.Dense(70, activation="relu"),
        layers.Dense(2, activation="softmax")])
    page = opened(model, ["a", "b"], DRAWINGS)
    draw(page, THREE)
    page.click("#open")
    page.wait_for_timeout(300)
    stages = page.locator("#stages figure h3").all_inner_texts()
    assert stages == ["Stage 1: 4 maps of 8 × 8", "Stage 2: 70 neurons"]
    assert f"A network with {model.count_params()} weights" in page.inner_text("#foot")


def test_drawn_digits_are_recognized(digits, opened):
    page = opened(digits[0], ten(), DRAWINGS, "digits")
    assert page.inner_text("#answer") == "–"  # an empty pad has no answer
    widths = page.locator("#bars .bar").evaluate_all("bars => bars.map(bar => bar.style.width)")
    assert widths == ["0%"] * 10
    draw(page, THREE)
    assert page.inner_text("#answer") == "3"
    page.click("#open")
    page.wait_for_timeout(300)
    stages = page.locator("#stages figure h3").all_inner_texts()
    assert stages[0] == "Stage 1: 8 maps of 7 × 7"
    assert stages[-1].endswith("64 neurons")
    page.click("#clear")
    page.wait_for_timeout(300)
    assert page.inner_text("#answer") == "–"
    assert not page.locator("#stages figure").first.is_visible()
    draw(page, ZERO)
    assert page.inner_text("#answer") == "0"
    page.wait_for_timeout(1200)
    assert page.locator("#spoken").inner_text().startswith("0, ")


def test_it_answers_while_the_line_is_drawn(digits, opened):
    page = opened(digits[0], ten(), DRAWINGS)
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 250, steps=8)
    page.wait_for_timeout(300)
    assert page.inner_text("#answer") != "–"  # the mouse is still down
    page.mouse.up()


def test_a_finger_draws(digits, opened):
    page = opened(digits[0], ten(), DRAWINGS, has_touch=True,
                  viewport={"width": 360, "height": 740})
    session = page.context.new_cdp_session(page)
    box = page.locator("#pad").bounding_box()
    kind = "touchStart"
    for x, y in ZERO:
        point = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
        kind = "touchMove"
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(300)
    assert page.inner_text("#answer") == "0"
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_chosen_pictures_get_the_answer_of_keras(digits, opened):
    model, images, labels = digits
    page = opened(model, ten(), DRAWINGS)
    for i in range(12):
        picture = Image.fromarray(255 - images[i, :, :, 0]).resize((240, 240))  # dark on white
        picture = ImageOps.expand(picture, 60, fill=255)
        choose(page, png(np.asarray(picture)))
        expected = keras_answers(model, prepared(picture, (8, 8, 1), DRAWINGS)[None])[0]
        assert page.inner_text("#answer") == str(expected.argmax())
        assert float(page.inner_text("#sure").partition("%")[0]) == pytest.approx(
            100 * expected.max(), abs=1)


def test_a_file_that_is_no_picture_gets_a_sentence(digits, opened):
    page = opened(digits[0], ten(), DRAWINGS)
    choose(page, b"no picture", "notes.png")
    assert "can't read notes.png" in page.inner_text("#message")
    assert page.inner_text("#answer") == "–"


def test_a_blank_picture_has_no_answer(digits, opened):
    page = opened(digits[0], ten(), DRAWINGS)
    choose(page, png(np.full((50, 50), 255, "uint8")))
    assert page.inner_text("#answer") == "–"


def test_the_camera_answers(digits, opened, playwright, tmp_path):
    model, images, _ = digits
    frames = [prepared(camera_frame(image), (8, 8, 1), DRAWINGS) for image in images]
    number = int((keras_answers(model, np.array(frames)).argmax(axis=1) == 5).argmax())
    with open(tmp_path / "camera.mjpeg", "wb") as file:
        for _ in range(10):
            camera_frame(images[number], 640).save(file, "JPEG", quality=95)
    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
             f"--use-file-for-fake-video-capture={tmp_path / 'camera.mjpeg'}"]
    browser = playwright.chromium.launch(
        executable_path=CHROMIUM, args=compare_page.CHROMIUM_FLAGS + flags)
    page = opened(model, ten(), DRAWINGS, browser=browser)
    page.click("[data-mode=camera]")
    sync_api.expect(page.locator("#answer")).to_have_text("5", timeout=15000)  # a mirrored 5: no 5
    assert page.inner_text("#message") == ""
    page.click("[data-mode=draw]")
    page.wait_for_timeout(300)
    assert page.inner_text("#answer") == "–"
    assert page.evaluate("stream") is None  # the camera is off
    browser.close()


def camera_frame(image, width=480):
    """Return a digit as a dark drawing on white paper before a camera, 480 pixels high."""
    digit = Image.fromarray(255 - image[:, :, 0]).resize((240, 240))
    frame = Image.new("L", (width, 480), 255)
    frame.paste(digit, (width // 2 - 120, 120))
    return frame.convert("RGB")


def test_a_refused_and_a_missing_camera_get_a_sentence(digits, opened, playwright):
    flags = ["--use-fake-device-for-media-stream", "--deny-permission-prompts"]
    refusing = playwright.chromium.launch(
        executable_path=CHROMIUM, args=compare_page.CHROMIUM_FLAGS + flags)
    page = opened(digits[0], ten(), DRAWINGS, browser=refusing)
    page.click("[data-mode=camera]")
    sync_api.expect(page.locator("#message")).to_contain_text("The camera was refused")
    page.evaluate("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})")
    page.click("[data-mode=camera]")
    sync_api.expect(page.locator("#message")).to_contain_text("lends no camera")
    refusing.close()
    without = playwright.chromium.launch(executable_path=CHROMIUM, args=[
        *compare_page.CHROMIUM_FLAGS, "--use-fake-ui-for-media-stream"])
    page = opened(digits[0], ten(), DRAWINGS, browser=without)
    page.click("[data-mode=camera]")
    sync_api.expect(page.locator("#message")).to_contain_text("No camera was found")
    without.close()


# --- names, numbers, sizes ------------------------------------------------------------------------

def small_network(shape, num_classes):
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input(shape), layers.Flatten(),
                             layers.Dense(num_classes, activation="softmax")])


def test_a_hostile_class_name_is_text(opened):
    title = "</title><script>alert(1)</script>"
    page = opened(small_network((8, 8, 1), 2), [HOSTILE, "a\u2028\ud800b"], DRAWINGS, title)
    draw(page, ZERO)
    assert page.locator("#bars .name").first.text_content() == HOSTILE
    assert page.locator("img").count() == 0
    assert page.title() == f"Try it: {title}"


def test_a_hundred_classes(opened):
    class_names = [f"class number {i}" for i in range(100)]
    page = opened(small_network((8, 8, 3), 100), class_names, PHOTOS)
    assert not page.locator("[data-mode=draw]").is_visible()
    choose(page, png(np.asarray(pictures()["colours"])))
    assert page.locator("#bars li").count() == 10
    assert "10 likeliest of 100" in page.inner_text("#timing")
    percents = page.locator("#bars .percent").all_inner_texts()
    values = [float(text.rstrip("%")) for text in percents]
    assert values == sorted(values, reverse=True)
    page.click("summary")
    assert "class number 99" in page.inner_text("#classes p")


def test_two_classes(opened):
    page = opened(small_network((8, 8, 3), 2), ["cat", "dog"], PHOTOS)
    choose(page, png(np.asarray(pictures()["colours"])))
    assert page.inner_text("#answer") in ("cat", "dog")
    assert page.locator("#bars li").count() == 2


def test_512_pixels(opened):
    images = np.random.default_rng(4).integers(0, 256, (1, 512, 512, 3), "uint8")
    model = network(images, [2, 2], 2)
    page = opened(model, ["cat", "dog"], PHOTOS)
    choose(page, png(images[0]))
    sync_api.expect(page.locator("#timing")).to_contain_text("Computed in", timeout=60000)
    page.click("#open")
    sync_api.expect(page.locator("#stages h3").first).to_contain_text("511", timeout=60000)
    probabilities, _ = compare_page.answers_of_page(page, images)
    assert np.abs(probabilities - keras_answers(model, images)).max() <= 0.01


# --- accessibility --------------------------------------------------------------------------------

@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(scheme, digits, opened):
    axe = pytest.importorskip("axe_playwright_python.base",
                              reason="no axe-core: pip install axe-playwright-python")
    page = opened(digits[0], ten(), DRAWINGS, color_scheme=scheme)
    draw(page, THREE)
    page.click("#open")
    page.wait_for_timeout(300)
    page.evaluate(axe.AXE_SCRIPT)
    for mode in ("draw", "picture"):
        page.click(f"[data-mode={mode}]")
        page.wait_for_timeout(300)
        found = page.evaluate("axe.run()")["violations"]
        assert [(v["id"], v["nodes"][0]["target"]) for v in found] == []


def test_the_keyboard_reaches_every_button(digits, opened):
    page = opened(digits[0], ten(), DRAWINGS)
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(
            "document.activeElement.id || document.activeElement.dataset.mode"))
    assert reached[:5] == ["draw", "picture", "camera", "clear", "open"]
    page.focus("[data-mode=picture]")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"


def test_the_page_is_readable_text():
    lines = script.PAGE.splitlines()
    assert max(len(line) for line in lines) <= 100
    assert script.PAGE.count("@@") == 2  # one placeholder
    assert pathlib.Path(script.__file__).read_text(encoding="utf-8").count('"""') % 2 == 0
