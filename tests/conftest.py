"""What all tests share: the script as a module, no network, no window, settings that are put back."""

import os
import pathlib
import sys
import tempfile

NOWHERE = "http://127.0.0.1:9"
for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
    os.environ[name] = NOWHERE
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ""
os.environ["MPLBACKEND"] = "Agg"
os.environ["KERAS_HOME"] = tempfile.mkdtemp()
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import pytest  # noqa: E402

import image_recognition_cnn as script  # noqa: E402

BLOCK = {name: getattr(script, name) for name in script.setting_rules}  # as it is written


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs main() in an empty folder with the given settings."""
    monkeypatch.chdir(tmp_path)

    def run_main(**settings):
        restart()
        for name, value in settings.items():
            assert name in BLOCK, name
            setattr(script, name, value)
        return script.main()

    yield run_main
    restart()


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out pictures and exports, where only numbers are looked at."""
    for name in dir(script):
        if name.startswith("draw_") or name in ("write_page", "write_phone_model"):
            monkeypatch.setattr(script, name, lambda *_: None)


@pytest.fixture
def settings(monkeypatch):
    """Return a function that sets settings, resolved as for a run, and reads no data."""

    def set_settings(**changes):
        restart()
        for name, value in changes.items():
            setattr(script, name, value)
        return script.read_settings()

    yield set_settings
    restart()


def restart():
    """Make the script what it is in a new process."""
    for name, value in BLOCK.items():
        setattr(script, name, value)
    script.resolved_settings.clear()
    script.release_lock()
    script.plt.close("all")
    script.keras.config.set_dtype_policy("float32")
