"""Compares try_it.html with Keras on the same images, in a real browser.

    python compare_page.py outputs/digits/model.keras images.npz     # x_test, or all of x

Writes the page of the model into a temporary folder, opens it in Chromium (headless), lets it
answer to at most 300 images and prints: the share of equal classes, the largest difference of a
probability, the median of the milliseconds and the least (which other programs disturb least), and
the size of the page in megabytes.
It ends with status 1 if fewer than 99.5 % of the classes agree or a probability differs by more
than 0.01. It takes Playwright (pip install playwright) and Chromium (apt-get install chromium).
"""
import argparse
import base64
import pathlib
import sys
import tempfile

import numpy as np

CHROMIUM = "/usr/bin/chromium"
# No sandbox: CI runs as root. The others keep Chromium from looking for hosts of its maker.
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]
# Runs in the page. The images come as one text of bytes, in the order of their numbers.
ANSWER_ALL = """async ([text, number]) => {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const size = bytes.length / number;
    const probabilities = [], milliseconds = [];
    for (let i = 0; i < number; i++) {
        const result = await recognize(bytes.subarray(i * size, (i + 1) * size));
        probabilities.push([...result.probabilities]);
        milliseconds.push(result.milliseconds);
    }
    return {probabilities, milliseconds};
}"""


def answers_of_page(page, images):
    """Return what an open page answers to images (number, height, width, channels) uint8.

    Two arrays: probabilities (number, classes) and milliseconds (number,).
    """
    text = base64.b64encode(np.ascontiguousarray(images).tobytes()).decode("ascii")
    result = page.evaluate(ANSWER_ALL, [text, len(images)])
    return np.array(result["probabilities"]), np.array(result["milliseconds"])


def compare(probabilities, expected):
    """Return the share of equal classes and the largest difference of a probability."""
    same = probabilities.argmax(axis=1) == expected.argmax(axis=1)
    return same.mean(), np.abs(probabilities - expected).max()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a model.keras")
    parser.add_argument("images", help="an .npz file with x_test or x: uint8 images")
    parser.add_argument("--number", type=int, default=300, help="images to compare (%(default)s)")
    arguments = parser.parse_args()

    import keras
    from playwright.sync_api import sync_playwright

    import image_recognition_cnn as script

    model = keras.models.load_model(arguments.model)
    with np.load(arguments.images) as file:
        name = "x_test" if "x_test" in file else "x"
        images = file[name][:arguments.number]
    images = images.reshape(len(images), *model.input_shape[1:])
    expected = model.predict(images, verbose=0)
    class_names = [str(number) for number in range(expected.shape[1])]
    about = {"white_on_black": False, "ink_share": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "try_it.html")
        if not script.write_page(model, class_names, about, "compared", path):
            sys.exit(1)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
            page = browser.new_page()
            page.goto(path.as_uri())
            probabilities, milliseconds = answers_of_page(page, images)
            browser.close()
        megabytes = path.stat().st_size / 1e6
    agreement, difference = compare(probabilities, expected)
    print(f"{len(images)} images: {agreement:.2%} the same class, largest difference of a "
          f"probability {difference:.5f}, median {np.median(milliseconds):.1f} ms an answer "
          f"(fastest {milliseconds.min():.1f}), "
          f"page {megabytes:.1f} MB")
    sys.exit(0 if agreement >= 0.995 and difference <= 0.01 else 1)


if __name__ == "__main__":
    main()
