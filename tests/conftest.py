"""What all tests share: no network, no window, and settings of the script that are put back.

The script is imported in functions only, as pytest-xdist loads this file in a process that runs no
test, too, and TensorFlow takes seconds to load.
"""

import atexit
import functools
import os
import pathlib
import shutil
import sys
import tempfile

import pytest

pytest.register_assert_rewrite("helpers")
NOWHERE = "http://127.0.0.1:9"
for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
    os.environ[name] = NOWHERE
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ""
os.environ["MPLBACKEND"] = "Agg"
os.environ["KERAS_HOME"] = tempfile.mkdtemp()  # an empty one for each process
atexit.register(shutil.rmtree, os.environ["KERAS_HOME"], ignore_errors=True)
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


SLOW_FIRST = ["test_process", "test_script", "test_page", "test_transfer", "test_litert", "test_drawing"]


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that both processes end at about the same time."""
    def place(item):
        return SLOW_FIRST.index(item.path.stem) if item.path.stem in SLOW_FIRST else len(SLOW_FIRST)

    items.sort(key=place)  # within a place, the order stays


@functools.cache
def settings_block():
    """The settings as they are written in the script."""
    import image_recognition_cnn as script

    return {name: getattr(script, name) for name in script.setting_rules}


@pytest.fixture(scope="session", autouse=True)
def settings_block_before_any_change():
    settings_block()


def restart():
    """Make the script what it is in a new process."""
    import image_recognition_cnn as script

    for name, value in settings_block().items():
        setattr(script, name, value)
    script.resolved_settings.clear()
    script.release_lock()
    script.plt.close("all")
    script.keras.config.set_dtype_policy("float32")


def change_settings(**changes):
    """Set settings, resolved as for a run; read no data. Call restart afterwards."""
    import image_recognition_cnn as script

    restart()
    for name, value in changes.items():
        assert name in settings_block(), name
        setattr(script, name, value)
    return script.read_settings()


@pytest.fixture
def settings():
    """Return change_settings; the settings are put back after the test."""
    yield change_settings
    restart()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs main() in an empty folder with the given settings."""
    import image_recognition_cnn as script

    monkeypatch.chdir(tmp_path)

    def run_main(**changes):
        restart()
        for name, value in changes.items():
            assert name in settings_block(), name
            setattr(script, name, value)
        return script.main()

    yield run_main
    restart()


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out pictures, exports and the answers without a network: they take half of a run."""
    import image_recognition_cnn as script

    for name in dir(script):
        if name.startswith("draw_") or name in ("write_page", "write_phone_model"):
            monkeypatch.setattr(script, name, lambda *_: None)
    monkeypatch.setattr(script, "simple_answers", lambda *_: {})
