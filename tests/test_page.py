"""try_it.html in a real browser: headless Chromium, driven by Playwright; skipped where one lacks."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image, ImageOps

import image_recognition_cnn as script

sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium", allow_module_level=True)
# No sandbox: CI runs as root. The others keep Chromium from looking for hosts of its maker, and
# give it a camera that shows a test picture.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update",
         "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
HOSTILE = "<img src=x onerror=\"document.title='broken in'\"></script><b>"
PHOTOS = {"white_on_black": False, "ink_share": 1.0}
DRAWINGS = {"white_on_black": True, "ink_share": 1.0, "widest": 9}
TEN = [str(number) for number in range(10)]
layers = script.layers


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """A function that writes a page and opens it from disk. At the end: no error, no request."""
    errors = []
    requests = []

    def open_page(model, class_names=TEN, about=PHOTOS, **options):
        script.write_page(model, class_names, about, HOSTILE, tmp_path)
        page = browser.new_page(**options)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda one: errors.append(one.text) if one.type == "error" else None)
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "try_it.html").as_uri())
        return page

    yield open_page
    assert errors == []
    assert [url for url in requests if not url.startswith(tmp_path.as_uri())] == []


@pytest.fixture(scope="module")
def digits():
    """A network that knows digits after a few seconds, and 100 test images."""
    script.keras.utils.set_random_seed(0)
    data = script.load_digits()
    images = (data.images * 255 / 16).round().astype("uint8")[..., np.newaxis]
    normalization = layers.Normalization()
    normalization.adapt(images)
    model = script.keras.Sequential([
        script.keras.Input((8, 8, 1)), normalization, layers.Conv2D(32, 3, activation="relu"),
        layers.BatchNormalization(), layers.MaxPooling2D(), layers.Flatten(),
        layers.Dense(64, activation="relu"), layers.Dense(10, activation="softmax")])
    model.compile(script.keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
    model.fit(images[100:], data.target[100:], batch_size=32, epochs=8, verbose=0)
    return model, images[:100]


def answer_to(page, name, content):
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
    page.wait_for_function("onPad === 'picture' && element('answer').textContent !== '–'"
                           " || element('message').textContent !== ''")
    return page.inner_text("#answer")


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("changes", [
    dict(FILTERS=[8, 12], DENSE_UNITS=16), dict(FILTERS=[8], DENSE_UNITS=0),
    dict(FILTERS=[6], DENSE_UNITS=8, WHITENING=False),
    dict(FILTERS=[6], DENSE_UNITS=8, BATCH_NORMALIZATION=False)], ids=str)
@pytest.mark.parametrize("shape", [(20, 28, 3), (16, 16, 1)], ids=str)
def test_the_page_computes_what_keras_computes(settings, opened, changes, shape):
    images = np.random.default_rng(0).integers(0, 256, (20, *shape)).astype("uint8")
    model = script.build_cnn(images, 10, settings(**changes))
    for layer in model.layers:  # as after a training: no weight is 0 or 1
        if isinstance(layer, (layers.BatchNormalization, layers.Conv2D, layers.Dense)):
            weights = layer.get_weights()
            layer.set_weights([weight + 0.1 * (i + 1) * (weight.ndim == 1)
                               for i, weight in enumerate(weights)])
    page = opened(model)
    found = page.evaluate("(images) => images.map((image) => recognize(image).probabilities)",
                          images.tolist())  # image[row][column][channel] there, too
    expected = model.predict(images, verbose=0)
    assert expected.std(axis=0).max() > 1e-3  # not the same for all
    assert np.abs(np.array(found) - expected).max() < 1e-5


@pytest.mark.parametrize("layer, word", [
    (layers.GlobalAveragePooling2D(), "GlobalAveragePooling2D"),
    (layers.Conv2D(2, 3, strides=2), "Conv2D"), (layers.Conv2D(2, 3, activation="tanh"), "tanh"),
    (layers.MaxPooling2D(3, strides=1), "MaxPooling2D")])
def test_what_it_can_not_compute_gets_a_sentence(tmp_path, capsys, layer, word):
    model = script.keras.Sequential([script.keras.Input((8, 8, 1)), layer, layers.Softmax()])
    script.write_page(model, TEN, PHOTOS, "T", tmp_path)
    assert word in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_drawings_and_files(opened, digits):
    model, images = digits
    page = opened(model, about=DRAWINGS, viewport={"width": 390, "height": 844})
    for selector in ("#pad", "#answer"):  # both in sight on a phone
        box = page.locator(selector).bounding_box()
        assert box["y"] + box["height"] < 844
    same = 0
    for i, image in enumerate(images[:20]):  # as --predict prepares them
        picture = Image.fromarray(image[..., 0]).resize((200, 200), Image.Resampling.BICUBIC)
        picture = ImageOps.expand(ImageOps.invert(picture), 60, 255)
        if i % 2:  # every second one lies half in the shade
            picture = Image.fromarray((np.linspace(0.15, 1, 320) * picture).astype("uint8"))
        prepared, _ = script.prepare_drawing(picture, (8, 8, 1), DRAWINGS)
        expected = model.predict(prepared[np.newaxis], verbose=0)[0].argmax()
        same += answer_to(page, "pen.png", png(picture)) == str(expected)
    assert same >= 19
    for kind in ("other.txt", "empty.png"):
        assert answer_to(page, kind, b"no picture" if kind == "other.txt" else b"") == "–"
        assert kind in page.inner_text("#message")
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 40, steps=10)
    page.mouse.up()
    page.wait_for_function("element('sure').textContent.includes('sure')")
    page.wait_for_function("element('spoken').textContent.includes('sure')")  # it has rested
    answer = page.inner_text("#answer")
    assert answer in TEN and page.inner_text("#spoken").startswith(f"{answer}, ")
    page.click("#clear")
    assert page.inner_text("#answer") == "–"


def test_photos_names_and_camera(settings, opened):
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 24, 3)).astype("uint8")
    model = script.build_cnn(images, 100, settings(FILTERS=[4], DENSE_UNITS=8))
    names = [HOSTILE, *(f"class {number} with a long name " * 3 for number in range(99))]
    page = opened(model, class_names=names)
    assert HOSTILE in page.title() and page.locator("img").count() == 0
    expected = model.predict(images[:5], verbose=0).argmax(axis=1)
    for image, number in zip(images, expected):
        assert answer_to(page, "photo.png", png(Image.fromarray(image))) == names[number].strip()
    large = Image.fromarray(images[0]).resize((4800, 3200), Image.Resampling.NEAREST)
    assert answer_to(page, "large.png", png(large)) == names[expected[0]].strip()
    page.click("summary")
    page.wait_for_selector("#stages canvas")
    assert page.locator("#stages p").count() == 4  # whitening, two in the block, dense
    assert page.locator("#stages canvas").count() == 24 + 4 + 4 + 8  # a map of each filter
    page.click("#camera")
    page.wait_for_function("stream !== null && onPad === 'picture'")
    page.evaluate("stream.getTracks()[0].dispatchEvent(new Event('ended'))")
    assert "taken away" in page.inner_text("#message") and page.inner_text("#answer") == "–"
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => Promise.reject("
                  "new DOMException('', 'NotAllowedError')); }")
    page.click("#camera")
    page.wait_for_function("element('message').textContent.includes('NotAllowedError')")


def test_accessibility(opened, digits):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for scheme in ("light", "dark"):
        page = opened(digits[0], about=DRAWINGS, color_scheme=scheme)
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()
