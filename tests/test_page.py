"""try_it.html in a real browser: headless Chromium, driven by Playwright; skipped without one."""

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
PHOTOS = {"white_on_black": False, "built_in": False, "ink_share": 1.0, "widest": 1.0}
DRAWINGS = {"white_on_black": True, "built_in": True, "ink_share": 1.0, "widest": 1.5}
OWN_DRAWINGS = {**DRAWINGS, "built_in": False}
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


@pytest.fixture
def photos(settings):
    """A network for coloured pictures 16x24 of 100 classes, not trained, and five pictures."""
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 24, 3)).astype("uint8")
    return script.build_cnn(images, 100, settings(FILTERS=[4], DENSE_UNITS=8)), images[:5]


def answer_to(page, name, content):
    page.evaluate("clearPad('')")  # no answer of an earlier picture is left
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
    page.wait_for_function(
        "element('message').textContent !== '' || onPad === 'picture'"
        " && (element('answer').textContent !== '–' || prepare()[0] === null)")
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
    assert page.locator("#alarm").is_hidden()


def small_network(*middle):
    """A network with these layers in its middle; always with the same random weights."""
    script.keras.utils.set_random_seed(0)
    return script.keras.Sequential([
        script.keras.Input((9, 8, 2)), *middle, layers.Flatten(),
        layers.Dense(10, activation="softmax")])


def test_global_max_pooling_is_pooling_of_the_whole_map(opened):
    model = small_network(layers.Conv2D(6, 3), layers.GlobalMaxPooling2D())
    page = opened(model)
    image = np.random.default_rng(0).integers(0, 256, (9, 8, 2))
    found = page.evaluate("(image) => recognize(image).probabilities", image.tolist())
    expected = model.predict(image[np.newaxis], verbose=0)[0]
    assert np.abs(found - expected).max() < 1e-5
    shapes = page.evaluate("data.steps.filter((s) => s.kind === 'pooling').map((s) => s.shape)")
    assert shapes == [[7, 6]]


def test_a_last_layer_may_have_no_bias(opened):
    last = layers.Dense(10, activation="softmax", use_bias=False)
    page = opened(script.keras.Sequential([
        script.keras.Input((9, 8, 2)), layers.Flatten(), last]))
    sums = script.check_pattern((9, 8, 2)).ravel() @ last.kernel.numpy()
    assert np.abs(page.evaluate("data.expected") - sums).max() < 0.01
    assert page.locator("#alarm").is_hidden()


@pytest.mark.parametrize("layer, words", [
    (layers.GlobalAveragePooling2D(), "globalaveragepooling2d"),
    (layers.Conv2D(2, 3, strides=2), "Conv2D with strides other than"),
    (layers.Conv2D(2, 3, dilation_rate=2), "Conv2D with dilation_rate other than"),
    (layers.Conv2D(2, 3, groups=2), "Conv2D with groups other than"),
    (layers.Conv2D(2, 3, activation="tanh"), "tanh"),
    (layers.Conv2D(2, 3, activation="relu6"), "relu6"),
    (layers.MaxPooling2D(3, strides=1), "maxpooling2d"),
    (layers.MaxPooling2D(2, padding="same"), "MaxPooling2D with padding other than"),
    (layers.ReLU(6), "ReLU with max_value other than"),
    (layers.ReLU(negative_slope=0.1), "ReLU with negative_slope other than"),
    (layers.ReLU(threshold=1), "ReLU with threshold other than"),
    (layers.LeakyReLU(), "leakyrelu"), (layers.Dense(3), "Dense on maps")])
def test_a_layer_that_the_page_can_not_compute_is_named(tmp_path, capsys, layer, words):
    script.write_page(small_network(layer), TEN, PHOTOS, "T", tmp_path)
    assert f"the page can't compute {words}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("end", [
    layers.Dense(10, activation="linear"), layers.Dense(10, activation="relu"),
    layers.Softmax()], ids=["linear", "relu", "softmax without dense"])
def test_a_network_that_does_not_end_in_dense_with_softmax_gets_no_page(tmp_path, capsys, end):
    model = small_network(layers.GlobalMaxPooling2D())
    model.add(end)
    script.write_page(model, TEN, PHOTOS, "T", tmp_path)
    assert f"the last layer ({end.name}) is not Dense with softmax" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_layers_that_act_in_training_only_need_no_step(opened):
    page = opened(small_network(
        layers.RandomRotation(0.2), layers.RandomFlip(), layers.Conv2D(4, 3, activation="relu"),
        layers.Dropout(0.5)))
    kinds = page.evaluate("data.steps.map((step) => step.kind)")
    assert kinds == ["convolution", "relu", "convolution"] and page.locator("#alarm").is_hidden()


@pytest.mark.parametrize("right, wrong", [
    ("sums[f] += value", "sums[f] -= value"), ("[above, left] = same", "[above, left] = !same"),
    ("+ weights[channels + k]", ""), ("=> Math.max(0, value)", "=> Math.abs(value)"),
    ("columns, Math.max)", "columns, Math.min)")])
def test_a_page_that_computes_something_else_says_so(opened, monkeypatch, right, wrong):
    assert script.PAGE.count(right) == 1
    monkeypatch.setattr(script, "PAGE", script.PAGE.replace(right, wrong))
    normalization = layers.Normalization(mean=[100, 120], variance=[900, 2500])
    page = opened(small_network(
        normalization, layers.Conv2D(6, 3, padding="same"), layers.MaxPooling2D(),
        layers.Conv2D(6, 2), layers.ReLU()))
    assert page.locator("#alarm").is_visible()
    assert "do not trust its answers" in page.inner_text("#alarm")


def test_a_page_of_many_megabytes_gets_a_word(tmp_path, capsys):
    for units, words in ((9000, ""), (30000, "try_it.html is 25 MB")):
        model = small_network(layers.Flatten(), layers.Dense(units))
        script.write_page(model, TEN, PHOTOS, "T", tmp_path)
        said = capsys.readouterr().err
        assert words in said and ("--dense-units 0" in said) == bool(words)


def drawing(shape, box, paper=0, ink=255):
    """A picture with one filled box of ink: left, top, right, bottom."""
    values = np.full(shape, paper, "uint8")
    left, top, right, bottom = box
    values[top:bottom, left:right] = ink
    return Image.fromarray(values)


def seen(page, picture):
    """What the network is given for a picture file: height x width, or None."""
    answer_to(page, "picture.png", png(picture))
    image = page.evaluate("prepare()[0]")
    return image and np.array(image)[..., 0].round().astype(int)


def as_it_is(picture):
    return np.asarray(picture.resize((8, 8), Image.Resampling.BOX), int)


LOW_LEFT = (1, 5, 3, 7)  # of 8x8; cut out, it fills the image


@pytest.mark.parametrize("about, paper, ink, size, is_cut_out", [
    (PHOTOS, 235, 40, 80, False), (PHOTOS, 0, 255, 8, False),
    (OWN_DRAWINGS, 0, 255, 8, False), (OWN_DRAWINGS, 0, 255, 80, False),
    (OWN_DRAWINGS, 110, 255, 80, False), (OWN_DRAWINGS, 235, 40, 80, True),
    (OWN_DRAWINGS, 235, 40, 8, True), (DRAWINGS, 0, 255, 8, False),
    (DRAWINGS, 40, 255, 8, True), (DRAWINGS, 235, 40, 8, True),
    (DRAWINGS, 0, 255, 80, True), (DRAWINGS, 235, 40, 80, True)])
def test_which_pictures_are_cut_out(opened, digits, about, paper, ink, size, is_cut_out):
    box = [edge * size // 8 for edge in LOW_LEFT]
    picture = drawing((size, size), box, paper, ink)
    image = seen(opened(digits[0], about=about), picture)
    expected = np.full((8, 8), 255) if is_cut_out else as_it_is(picture)
    assert np.abs(image - expected).max() <= 2


def draw_with_the_mouse(page, *points):
    """Draw lines on the pad between points, as shares of its sides."""
    box = page.locator("#pad").bounding_box()
    for number, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=10)
        if number == 0:
            page.mouse.down()
    page.mouse.up()


@pytest.mark.parametrize("about", [DRAWINGS, OWN_DRAWINGS], ids=["built-in", "own"])
def test_what_is_drawn_on_the_pad_is_cut_out(opened, digits, about):
    page = opened(digits[0], about=about)
    draw_with_the_mouse(page, (0.2, 0.2), (0.2, 0.5))  # small, in a corner
    page.wait_for_function("element('sure').textContent.includes('sure')")
    image = np.array(page.evaluate("prepare()[0]"))[..., 0]
    rows = np.flatnonzero((image > 100).any(axis=1))
    columns = np.flatnonzero((image > 100).any(axis=0))
    assert (rows[0], rows[-1]) == (0, 7) and columns[0] + columns[-1] == 7  # as large as the image


def test_a_drawing_wider_than_the_training_images_gets_a_word(opened, digits):
    page = opened(digits[0], about=DRAWINGS)
    for width, is_wide in ((140, False), (170, True)):  # of 100 pixels in height; widest is 1.5
        answer_to(page, "x.png", png(drawing((300, 300), (50, 100, 50 + width, 200), 235, 40)))
        assert ("wider than in training" in page.inner_text("#sure")) == is_wide


def noisy(picture, noise):
    values = np.asarray(picture) + np.random.default_rng(0).normal(0, noise, picture.size[::-1])
    return Image.fromarray(values.clip(0, 255).astype("uint8"))


@pytest.mark.parametrize("light, noise", [(235, 0), (235, 25), (120, 25), (20, 5)])
def test_blank_paper_is_nothing_to_see(opened, digits, light, noise):
    page = opened(digits[0], about=DRAWINGS)
    blank = Image.new("L", (400, 300), light)
    answer_to(page, "blank.png", png(noisy(blank, noise)))
    assert page.inner_text("#answer") == "–" and "nothing to see" in page.inner_text("#sure")


@pytest.mark.parametrize("ink, noise", [(215, 0), (180, 3), (120, 25)])
def test_pale_ink_stands_out_from_noise(opened, digits, ink, noise):
    page = opened(digits[0], about=DRAWINGS)
    picture = noisy(drawing((300, 400), (180, 60, 210, 240), 235, ink), noise)
    assert answer_to(page, "pale.png", png(picture)) in TEN


def test_pad_and_answer_are_both_in_sight_on_a_phone(opened, digits):
    page = opened(digits[0], about=DRAWINGS, viewport={"width": 390, "height": 844})
    for selector in ("#pad", "#answer"):
        box = page.locator(selector).bounding_box()
        assert box["y"] + box["height"] < 844


def test_pen_on_paper_is_answered_as_by_predict(opened, digits):
    model, images = digits
    page = opened(model, about=DRAWINGS)
    same = 0
    for i, image in enumerate(images[:20]):
        picture = Image.fromarray(image[..., 0]).resize((200, 200), Image.Resampling.BICUBIC)
        picture = ImageOps.expand(ImageOps.invert(picture), 60, 255)
        if i % 2:  # every second one lies half in the shade
            picture = Image.fromarray((np.linspace(0.15, 1, 320) * picture).astype("uint8"))
        prepared, _ = script.prepare_drawing(picture, (8, 8, 1), DRAWINGS)
        expected = model.predict(prepared[np.newaxis], verbose=0)[0].argmax()
        same += answer_to(page, "pen.png", png(picture)) == str(expected)
    assert same >= 19


@pytest.mark.parametrize("name, content", [("other.txt", b"no picture"), ("empty.png", b"")])
def test_a_file_that_is_no_picture_is_named(opened, digits, name, content):
    page = opened(digits[0], about=DRAWINGS)
    assert answer_to(page, name, content) == "–"
    assert f"can't read {name}" in page.inner_text("#message")


def test_a_drawing_is_answered_and_spoken(opened, digits):
    page = opened(digits[0], about=DRAWINGS)
    draw_with_the_mouse(page, (0.5, 0.2), (0.5, 0.8))
    page.wait_for_function("element('sure').textContent.includes('sure')")
    page.wait_for_function("element('spoken').textContent.includes('sure')")  # it has rested
    answer = page.inner_text("#answer")
    assert answer in TEN and page.inner_text("#spoken").startswith(f"{answer}, ")
    page.click("#clear")
    assert page.inner_text("#answer") == "–"


def test_photos_are_answered_as_by_keras(opened, photos):
    model, images = photos
    names = [f"class {number} with a long name " * 3 for number in range(100)]
    page = opened(model, class_names=names)
    expected = [names[i].strip() for i in model.predict(images, verbose=0).argmax(axis=1)]
    for image, name in zip(images, expected):
        assert answer_to(page, "photo.png", png(Image.fromarray(image))) == name
    large = Image.fromarray(images[0]).resize((4800, 3200), Image.Resampling.NEAREST)
    assert answer_to(page, "large.png", png(large)) == expected[0]


def test_names_are_shown_as_text(opened, photos):
    page = opened(photos[0], class_names=[HOSTILE] * 100)
    assert HOSTILE in page.title() and page.locator("img").count() == 0
    assert answer_to(page, "photo.png", png(Image.fromarray(photos[1][0]))) == HOSTILE


def test_a_look_inside_shows_a_map_of_each_filter(opened, photos):
    page = opened(photos[0], class_names=[str(number) for number in range(100)])
    answer_to(page, "photo.png", png(Image.fromarray(photos[1][0])))
    page.click("summary")
    page.wait_for_selector("#stages canvas")
    assert page.locator("#stages p").count() == 4  # whitening, two in the block, dense
    assert page.locator("#stages canvas").count() == 24 + 4 + 4 + 8


def test_a_camera_is_looked_at_until_it_is_taken_away(opened, digits):
    page = opened(digits[0])
    page.click("#camera")
    page.wait_for_function("stream !== null && onPad === 'picture'")
    page.evaluate("stream.getTracks()[0].dispatchEvent(new Event('ended'))")
    assert "disconnected" in page.inner_text("#message") and page.inner_text("#answer") == "–"


def test_a_refused_camera_gets_a_sentence(opened, digits):
    page = opened(digits[0])
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => Promise.reject("
                  "new DOMException('', 'NotAllowedError')); }")
    page.click("#camera")
    page.wait_for_function("element('message').textContent.includes('NotAllowedError')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(opened, digits, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(digits[0], about=DRAWINGS, color_scheme=scheme)
    page.evaluate("element('alarm').hidden = false")  # to be looked at as well
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()
