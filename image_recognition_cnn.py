# /// script
# requires-python = ">=3.11"
# dependencies = ["tensorflow>=2.18,<3", "numpy>=1.26,<3", "matplotlib>=3.9,<4", "seaborn>=0.13.2,<0.14",
#                 "scikit-learn>=1.5,<2"]
# ///
"""Image recognition with a convolutional neural network (CNN), from pixels to pictures.

Trains a small CNN, tests it on images it has never seen and draws what came out into outputs/. In a first
reading, skip from the settings to "Data". "Worth 1 point" means test accuracy: README, Experiments to try.

    python image_recognition_cnn.py                                 # works offline, in half a minute
    python image_recognition_cnn.py --dataset cifar10 --epochs 4    # every setting is a flag
    python image_recognition_cnn.py --dataset my/pictures           # a folder with a sub-folder per class
    python image_recognition_cnn.py --dataset mnist --predict photo.jpg    # asks a trained model
"""

# %% Settings: change a number, run again, and see what it did
# dict(...) holds one value per data set or optimizer, the last for all that it doesn't name. Each line makes
# a command-line flag too: BATCH_SIZE is --batch-size. Write 0.0, not 0: a flag takes its value's type.
# data
DATASET = "digits"  # digits (no download), mnist, fashion_mnist, cifar10, or a folder or .npz of another name
IMAGE_SIZE = 64  # width and height to which the pictures of a folder are brought, 8 to 512 pixels
VALIDATION_SPLIT = dict(cifar10=0.04, others=0.1)  # share held back to watch the training, between 0 and 1
AUGMENTATION = True  # shift each training image at random in every epoch (and mirror it in every other)
SHIFT = dict(digits=1, others=2)  # pixels of the farthest shift, 0 or more
MIRROR = dict(fashion_mnist=True, cifar10=True, others=False)  # left-right too; a mirrored 2 is no 2
# model
FILTERS = dict(digits=[32, 64], cifar10=[64, 192, 256], others=[32, 64, 128])  # filters per block, 1 or more
DENSE_UNITS = 128  # neurons of the hidden dense layer, 1 or more
DROPOUT = 0.2  # share of the dense neurons silenced at random in each training step, from 0 to below 1
# training
EPOCHS = dict(mnist=4, fashion_mnist=12, cifar10=16, others=30)  # passes over the training images, 1 or more
BATCH_SIZE = dict(mnist=128, fashion_mnist=128, cifar10=128, others=32)  # images per step, 1 or more
OPTIMIZER = "adam"  # adam, or sgd (with Nesterov momentum 0.9)
LEARNING_RATE = dict(adam=0.004, sgd=0.1)  # step size at its peak (see Training), above 0, up to 10
WEIGHT_DECAY = dict(adam=0.25, sgd=0.01)  # times learning rate: share of a weight lost per step, 0 to 100
LABEL_SMOOTHING = 0.2  # share of each label spread evenly over all classes, from 0 to below 1
PRECISION = "float32"  # number format of the arithmetic: float32, mixed_bfloat16 or mixed_float16
SEED = 0  # start of all random numbers, 0 to 4294967295; same seed and same machine: same result
# results
OUTPUT_DIR = "outputs"  # a folder; each data set gets its own in it, where a new run replaces the last
RESUME = False  # go on with a run that was cut off, from its last finished epoch
PREDICT = []  # pictures to classify with the model of an earlier run, in place of training

# %% Flags, before anything slow: --help and a mistake answer at once
import argparse, json, os, pathlib, re, shutil, signal, socket, sys, time, zipfile
settings = {name: value for name, value in globals().items() if name.isupper()}  # the block above
meanings = {}  # what the comments of the block say; the help texts


def stop(sentence):
    """End the program with one sentence on stderr and exit status 2, the mark of wrong use."""
    print("image_recognition_cnn.py:", sentence, file=sys.stderr, flush=True)
    sys.stdout.flush()
    # sys.exit would wait for TensorFlow's threads, which may wait for us; but a notebook's kernel must live on.
    sys.exit(2) if "ipykernel" in sys.modules else os._exit(2)


if "ipykernel" not in sys.modules:  # a notebook has no command line; there the block above is all
    meanings = dict(re.findall(r"^([A-Z_0-9]+) = .+? +# (.+)", pathlib.Path(__file__).read_text("utf-8"), re.M))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.error = stop
    for name, default in settings.items():
        example = [*default.values()][-1] if isinstance(default, dict) else default
        kinds = {bool: dict(action=argparse.BooleanOptionalAction),
                 list: dict(type=int if example else str, nargs="+")}
        parser.add_argument("--" + name.lower().replace("_", "-"), default=default,
                            help=meanings.get(name, ""), **kinds.get(type(example), dict(type=type(example))))
    settings = {name.upper(): value for name, value in vars(parser.parse_args()).items()}
    signal.signal(signal.SIGINT, lambda *_: stop("ended by Ctrl-C; results of earlier runs stay as they were."))
    getattr(sys.stdout, "reconfigure", dict)(errors="replace")  # a console may lack Keras' line drawing
    os.environ["MPLBACKEND"] = "Agg"  # draw into files: works with no screen, and no window holds up the run
for name, value in settings.items():
    if isinstance(value, dict):
        settings[name] = value.get(settings["DATASET"], value.get(settings["OPTIMIZER"], [*value.values()][-1]))
globals().update(settings)

# %% Checks of all that can be checked before the work starts
built_in = dict(digits=8, mnist=28, fashion_mnist=28, cifar10=32)  # width and height in pixels
is_npz = DATASET.endswith(".npz") and os.path.isfile(DATASET)
image_size = built_in.get(DATASET, 512 if is_npz else IMAGE_SIZE)
title = pathlib.Path(DATASET).resolve().name.removesuffix(".npz")  # of the pictures and the folder of results
for name, allowed in dict(
    DATASET=DATASET in built_in or (is_npz or os.path.isdir(DATASET) or PREDICT) and title not in built_in,
    IMAGE_SIZE=8 <= IMAGE_SIZE <= 512, VALIDATION_SPLIT=0 < VALIDATION_SPLIT < 1, SHIFT=0 <= SHIFT < image_size,
    FILTERS=min(FILTERS) >= 1, DENSE_UNITS=DENSE_UNITS >= 1, DROPOUT=0 <= DROPOUT < 1, EPOCHS=EPOCHS >= 1,
    BATCH_SIZE=BATCH_SIZE >= 1, OPTIMIZER=OPTIMIZER in ("adam", "sgd"), LEARNING_RATE=0 < LEARNING_RATE <= 10,
    WEIGHT_DECAY=0 <= WEIGHT_DECAY <= 100, LABEL_SMOOTHING=0 <= LABEL_SMOOTHING < 1,
    PRECISION=PRECISION in ("float32", "mixed_bfloat16", "mixed_float16"), SEED=0 <= SEED < 2**32,
).items():
    if not allowed:
        stop(f"--{name.lower().replace('_', '-')} can't be {settings[name]}: {meanings.get(name, '')}.")
if (most := (image_size - 1).bit_length() - 1) < len(FILTERS):  # 8 pixels: 7 after whitening, then 3, 1
    stop(f"--filters {FILTERS} is too long: a block halves the image, and {image_size} pixels allow {most}.")

# Results are collected in a folder of their own and take their place at the very end, so that a run that
# fails leaves the results of the run before it as they were. Two runs at once need two --output-dir.
results, unfinished = pathlib.Path(OUTPUT_DIR, title), pathlib.Path(OUTPUT_DIR, title + ".unfinished")
settings_file = unfinished / "resume" / "settings.json"  # of a run that was cut off; --resume takes no others
now = {name: str(value) for name, value in settings.items() if name not in ("OUTPUT_DIR", "RESUME", "PREDICT")}
then = json.loads(settings_file.read_text(encoding="utf-8")) if RESUME and settings_file.is_file() else {}
if RESUME and then != now:
    differing = ", ".join(f"{name} was {then[name]}" for name in then if then[name] != now.get(name))
    stop(f"--resume takes the settings of a run that was cut off: {differing or f'{unfinished} holds none'}.")
try:
    if not RESUME and not PREDICT:
        shutil.rmtree(unfinished, ignore_errors=True)
        settings_file.parent.mkdir(parents=True)
        settings_file.write_text(json.dumps(now), encoding="utf-8")
except OSError as error:
    stop(f"--output-dir {OUTPUT_DIR} can't be written ({error.strerror}); name a folder of your own.")

# %% Libraries: the slow imports, three seconds of mostly TensorFlow
os.environ |= dict(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="1")  # 1: no notes, but warnings
# While it loads, TensorFlow 2.21 does not look at its log level yet and writes notes straight to stream 2.
stderr, _ = os.dup(2), os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
try:
    import tensorflow as tf
finally:
    os.dup2(stderr, 2)
import keras  # Keras 3, which comes with TensorFlow
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd  # comes with seaborn
import seaborn as sns
from keras import callbacks, layers
from PIL import Image, ImageOps  # comes with matplotlib
from sklearn.datasets import load_digits
from sklearn.metrics import classification_report, confusion_matrix
from sklearn.model_selection import train_test_split
print("Settings:", ", ".join(f"{name} {value}" for name, value in settings.items()))
keras.utils.set_random_seed(SEED)  # Python's, NumPy's and TensorFlow's random numbers
keras.config.set_dtype_policy(PRECISION)
sns.set_theme(style="whitegrid", palette="colorblind",  # colours that colour-blind readers tell apart
              font="DejaVu Sans", rc={"text.parse_math": False})  # has ✓ and ✗; a $ in a name is no formula


def read_picture(path):
    """Return a picture file of any size and mode as an RGB image, upright and on white; if unreadable, None."""
    try:
        im = ImageOps.exif_transpose(Image.open(path))
        if im.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
            im = Image.fromarray((np.asarray(im) // 256).astype("uint8"))
        return Image.alpha_composite(Image.new("RGBA", im.size, "white"), im.convert("RGBA")).convert("RGB")
    except Exception as error:  # Pillow has many
        print(f"Skipped {path}, which can't be read as a picture: {error}", file=sys.stderr)


def draw_grid(path, headline, images, titles, wrong):
    """Draw images (number, height, width, channels) uint8 six in a row, with frames by wrong (number,) bool."""
    rows = max(1, -(-len(images) // 6))
    figure = plt.figure(figsize=(11, 2.1 * rows + 0.6), layout="constrained")
    figure.suptitle(headline)
    for place, (image, text, mistake) in enumerate(zip(images, titles, wrong), 1):
        axis = figure.add_subplot(rows, 6, place, xticks=[], yticks=[])
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        axis.set_title(text, fontsize=10)
        axis.spines[:].set(color="C3" if mistake else "C0", linewidth=5 if mistake else 2)
    figure.savefig(path, dpi=120)


# %% Only with --predict: show pictures to the model of an earlier run, and end
if PREDICT:
    try:
        model = keras.models.load_model(results / "model.keras")  # safe mode: runs no code from the file
        class_names = json.loads(zipfile.ZipFile(results / "model.keras").read("class_names.json"))
    except Exception as error:
        stop(f"--predict has no model ({str(error).splitlines()[0]}): first run --dataset {DATASET} alone.")
    height, width, channels = model.input_shape[1:]
    shown, titles = [], []
    for path in PREDICT:
        if not (picture := read_picture(path)):
            continue
        if DATASET in ("digits", "mnist", "fashion_mnist"):  # they are white on black, and cut out closely
            picture = ImageOps.autocontrast(picture.convert("L"))
            on_white = np.median(np.asarray(picture)[[0, -1]]) > 127  # first and last row: background
            print(f"{path}: taken for {'dark on white' if on_white else 'white on black'}")
            picture = ImageOps.invert(picture) if on_white else picture
            picture = picture.crop(picture.point(lambda pixel: 255 * (pixel > 100)).getbbox())
            picture = ImageOps.pad(picture, (max(picture.size),) * 2)
            picture = ImageOps.expand(picture, picture.width // 5 if DATASET == "mnist" else 0)  # ink: 20 of 28
        picture = ImageOps.fit(picture.convert("L" if channels == 1 else "RGB"), (width, height))
        shown.append(np.asarray(picture).reshape(height, width, channels))
        probabilities = model.predict(shown[-1][None], verbose=0)[0]  # (number of classes,)
        likeliest = [f"{class_names[i]} {probabilities[i]:.1%}" for i in probabilities.argsort()[:-4:-1]]
        print(f"{path}: {', '.join(likeliest)}")
        titles.append(f"{pathlib.Path(path).name[-20:]}\n{likeliest[0][-22:]}")
    if shown:
        draw_grid(results / "predictions.png", "As the network saw it", shown[:60], titles, [False] * 60)
        print(f"Drawn in {results / 'predictions.png'}")
    sys.exit(0 if len(shown) == len(PREDICT) else 1)

# %% Data: images (number, height, width, channels), uint8 from 0 to 255; labels (number,), int
def read_folder(folder):
    """Return the pictures folder/class/* as (number, IMAGE_SIZE, IMAGE_SIZE, 3) uint8, and their classes."""
    images, labels = [], []
    for path in sorted(pathlib.Path(folder).glob("[!.]*/[!.]*")):
        if picture := read_picture(path):
            images.append(np.asarray(ImageOps.fit(picture, (IMAGE_SIZE, IMAGE_SIZE))))  # cuts out the middle
            labels.append(path.parent.name)
    return np.array(images, "uint8").reshape(len(images), IMAGE_SIZE, IMAGE_SIZE, 3), np.array(labels)


try:  # the parts are training and test, each with images and labels, or all in one
    if DATASET == "digits":
        images, labels = load_digits(return_X_y=True)  # (1797, 64) float64 from 0 to 16, (1797,)
        parts = [((images * 255 / 16).round().astype("uint8").reshape(-1, 8, 8), labels)]
    elif DATASET in built_in:
        socket.setdefaulttimeout(60)  # seconds; a dead connection would hold up the run for ever
        parts = getattr(keras.datasets, DATASET).load_data()
    elif is_npz:
        with np.load(DATASET, allow_pickle=False) as file:  # a pickle could run any program of its author
            names = ("train", "test") if "x_test" in file else ("train",)
            parts = [(file[f"x_{name}"], file[f"y_{name}"]) for name in names]
    else:
        in_two = os.path.isdir(f"{DATASET}/train") and os.path.isdir(f"{DATASET}/test")
        parts = [read_folder(f"{DATASET}/{name}") for name in (("train", "test") if in_two else ("",))]
except Exception as error:
    if DATASET not in built_in:
        stop(f"--dataset {DATASET} is neither a folder of pictures nor an .npz file without pickles: {error}.")
    home = pathlib.Path(os.environ.get("KERAS_HOME", pathlib.Path.home() / ".keras"))
    store = "storage.googleapis.com/tensorflow/tf-keras-datasets/"
    address, name = dict(  # where Keras fetches it, and under which name it looks for a copy before that
        mnist=(store + "mnist.npz", "mnist.npz"),
        fashion_mnist=(store, "fashion-mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"),
        cifar10=("www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "cifar-10-batches-py-target_archive"),
    )[DATASET]
    stop(f"{DATASET} could not be loaded from https://{address} ({error}): put a copy of the file at "
         f"{home / 'datasets' / name}, or run --dataset digits, which needs no download.")
least = max(2 ** len(FILTERS), SHIFT) + 1  # pixels
for x, y in parts:
    if (x.dtype != "uint8" or x.shape[3:] not in ((), (1,), (3,)) or min((*x.shape, 0, 0)[1:3]) < least
            or x.shape[1:] != parts[0][0].shape[1:] or y.size != len(x)):
        stop(f"--dataset {DATASET} has {x.dtype} {x.shape}, {y.size} labels; it takes uint8 (number, height, "
             f"width) or (number, height, width, 3), {least} pixels or more, alike in both parts, with labels.")
x_train, x_test = (x if x.ndim == 4 else x[..., None] for x in (parts[0][0], parts[-1][0].copy()))  # 1 channel
names, labels = np.unique(np.concatenate([y.ravel() for _, y in parts]), return_inverse=True)
y_train, y_test = labels[:len(x_train)], labels[len(x_train):]  # (number,) int, in the order of names
class_names = {
    "fashion_mnist": "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","),
    "cifar10": "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck".split(","),
}.get(DATASET, [str(name) for name in names])
num_classes = len(class_names)
few = [name for name, number in zip(class_names, np.bincount(y_train, minlength=num_classes)) if number < 3]
if num_classes < 2 or few or not len(x_test):
    stop(f"--dataset {DATASET} has too few {few or 'classes or test images'}: each class takes 3 to train on.")
# The validation images are cut from the training images, the same share of every class. Choose settings by
# them: the test images are looked at once, at the end. Who tunes on the test set fools himself.
try:
    if len(parts) == 1:  # a fifth is for the test, the same for every SEED
        x_train, x_test, y_train, y_test = train_test_split(
            x_train, y_train, stratify=y_train, random_state=0, test_size=max(0.2, num_classes / len(x_train)))
    x_train, x_val, y_train, y_val = train_test_split(
        x_train, y_train, stratify=y_train, random_state=SEED,
        test_size=max(VALIDATION_SPLIT, num_classes / len(x_train)))
except ValueError as error:
    stop(f"--dataset {DATASET} can't be split with --validation-split {VALIDATION_SPLIT} ({error}).")
del parts, x  # all are copies by now, so the arrays that they were cut from can go
print(f"{num_classes} classes, {len(x_train)} training images, {len(x_val)} validation, {len(x_test)} test")

# %% Model: read it as a table; behind each layer, the shape of what comes out of it
# Normalization stands inside the model, so the saved model takes raw pixels and can't be fed wrongly.
normalization = layers.Normalization()  # (pixel - mean) / standard deviation, for each channel
normalization.adapt(x_train[:1 + 10_240_000 // x_train[0].size])  # 10 million numbers are enough
# In training only, so that an image seldom looks the same twice. With all the mirroring worth 1.8 points.
shift = layers.RandomTranslation(SHIFT / x_train.shape[1], SHIFT / x_train.shape[2], interpolation="nearest")
# The first layer is computed, not learned (Jordan, 2024), worth 1.2 points. Neighbouring pixels are alike; it
# turns 2x2 patches into uncorrelated numbers of equal spread (whitening), also negated, as ReLU cuts below 0.
sample = normalization(x_train[:1 + 3_072_000 // x_train[0].size])  # 3 million are enough here
patches = np.reshape(keras.ops.image.extract_patches(sample, size=2, strides=1), (-1, 4 * x_train.shape[3]))
variances, directions = np.linalg.eigh(np.cov(patches, rowvar=False))  # patches: (number, values in one)
kernels = (directions / np.sqrt(variances + 5e-4)).reshape(2, 2, x_train.shape[3], -1)  # 5e-4: no / 0
whitening = layers.Conv2D(
    2 * kernels.shape[-1], 2, use_bias=False, activation="relu", trainable=False, name="whitening",
    kernel_initializer=keras.initializers.Constant(np.concatenate([kernels, -kernels], axis=-1)))


def block(filters, name):
    """Layers that turn features (height, width, any) into (height // 2, width // 2, filters).

    Pooling comes right after the first convolution, so that all behind it works on a quarter of the pixels
    (Jordan, 2024). Batch normalization (Ioffe and Szegedy, 2015) allows large steps, which is worth 4.0 points:
    it subtracts the mean of the batch, so a convolution before it needs no bias, and divides by the spread.
    In a test it uses averages over the last few batches (momentum 0.6), as the network changes fast.
    """
    return [
        layers.Conv2D(filters, 3, padding="same", use_bias=False),  # (height, width, filters)
        layers.MaxPooling2D(),  # (height // 2, width // 2, filters)
        layers.BatchNormalization(momentum=0.6),
        layers.ReLU(),
        layers.Conv2D(filters, 3, padding="same", use_bias=False),  # (height // 2, width // 2, filters)
        layers.BatchNormalization(momentum=0.6),
        layers.ReLU(name=name),
    ]


model = keras.Sequential([
    keras.Input(x_train.shape[1:]),  # (height, width, channels), as all up to the whitening
    *([shift] if AUGMENTATION else []),
    normalization,
    whitening,  # (height - 1, width - 1, 8 * channels)
    *[layer for i, filters in enumerate(FILTERS, 1) for layer in block(filters, f"block_{i}")],
    layers.Flatten(),  # CIFAR-10: (3, 3, 256) becomes (2304,)
    layers.Dense(DENSE_UNITS, activation="relu"),  # (DENSE_UNITS,)
    layers.Dropout(DROPOUT),
    layers.Dense(num_classes, activation="softmax", dtype="float32"),  # (num_classes,) float32, always
])
for layer in model.layers:  # start by handing on, a channel each (Jordan, 2024), worth 0.6 points
    if isinstance(layer, layers.Conv2D) and layer.trainable:
        kernel = layer.get_weights()[0]  # (3, 3, channels in, filters)
        same = range(min(kernel.shape[2:]))
        kernel[:, :, :, same], kernel[1, 1, same, same] = 0, 1
        layer.set_weights([kernel])
stages = [layer for layer in model.layers if layer.name.startswith(("whitening", "block"))]  # to draw
model.summary()

# %% Training
# The learning rate rises from 0 over the first fifth of the run, as the gradients of a random network mislead
# (warm-up; Goyal et al., 2017), and then falls to 0 along a cosine, so that the weights come to rest
# (Loshchilov and Hutter, 2017): 4.2 points. Weight decay is decoupled from the gradient (AdamW; they, 2019).
steps = EPOCHS * int(np.ceil(len(x_train) / BATCH_SIZE))
rate = keras.optimizers.schedules.CosineDecay(
    0.0, decay_steps=steps - steps // 5, warmup_target=LEARNING_RATE, warmup_steps=max(1, steps // 5))
optimizer = (keras.optimizers.Adam(rate, weight_decay=WEIGHT_DECAY) if OPTIMIZER == "adam" else
             keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY))
optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])  # offsets and scales don't overfit
# Label smoothing asks for less than certainty, so that the network need not push its outputs to extremes
# (Szegedy et al., 2016). At 0.2 and ten classes it asks for 0.82 in place of 1, and the lowest loss is 0.87.
loss_function = keras.losses.CategoricalCrossentropy(label_smoothing=LABEL_SMOOTHING)
model.compile(optimizer, loss_function, metrics=["accuracy"])


def batches(images, labels, training=False):
    """Serve images (uint8) with one-hot labels (float32; class 2 of 4: 0, 0, 1, 0) as a tf.data.Dataset.

    In training: in a new order in each epoch; with MIRROR, each mirrored in every other epoch (Jordan, 2024).
    Given arrays, fit would copy them, and wait up to a minute for autotune after an epoch (TensorFlow 2.21).
    """
    mirror = training and AUGMENTATION and MIRROR
    mirrored = (np.random.default_rng(SEED).random((len(images), 1, 1, 1)) < 0.5) & mirror  # at the moment

    def read(chosen):
        mirrored[chosen] ^= mirror
        return np.where(mirrored[chosen], images[chosen, :, ::-1], images[chosen])

    def pick(chosen):
        x = tf.ensure_shape(tf.numpy_function(read, [chosen], images.dtype), (None, *images.shape[1:]))
        return x, tf.one_hot(tf.gather(labels, chosen), num_classes)

    order = tf.data.Dataset.range(len(images)).shuffle(len(images) if training else 1, seed=SEED)
    options = tf.data.Options()
    options.autotune.enabled = False
    return order.batch(BATCH_SIZE).map(pick).prefetch(2).with_options(options)


started, interrupt = time.perf_counter(), signal.getsignal(signal.SIGINT)
model.fit(
    batches(x_train, y_train, training=True), validation_data=batches(x_val, y_val), epochs=EPOCHS,
    verbose=1 if sys.stdout.isatty() else 2, shuffle=False,  # a moving bar on a screen; batches shuffles
    callbacks=[
        callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: (
            logs.update(learning_rate=float(optimizer.learning_rate)),
            # From now on Ctrl-C only ends the training, after the step at hand; evaluation and pictures follow.
            signal.signal(signal.SIGINT, lambda *_: setattr(model, "stop_training", True)))),
        callbacks.CSVLogger(unfinished / "history.csv", append=RESUME),
        callbacks.BackupAndRestore(unfinished / "resume/last", double_checkpoint=True, delete_checkpoint=False),
        callbacks.TerminateOnNaN(),
    ])
seconds = time.perf_counter() - started
signal.signal(signal.SIGINT, interrupt)
# An epoch that was cut off between its row in the table and its checkpoint has two rows: the last holds.
history = pd.read_csv(unfinished / "history.csv").drop_duplicates("epoch", keep="last", ignore_index=True)
history.to_csv(unfinished / "history.csv", index=False)
if not np.isfinite(history["loss"].iloc[-1]):
    stop(f"The loss became NaN, as the steps were too large; try --learning-rate {LEARNING_RATE / 10:g}.")
model.save(unfinished / "model.keras")  # before anything that can still go wrong
with zipfile.ZipFile(unfinished / "model.keras", "a") as file:
    file.writestr("class_names.json", json.dumps(class_names))  # they travel with the model

# %% Evaluation: the one look at the test images
probabilities = model.predict(batches(x_test, y_test), verbose=0)  # (number, classes) float32; ignores y_test
single_view = float(np.mean(probabilities.argmax(axis=1) == y_test))
if AUGMENTATION and MIRROR:  # answers averaged with those to the mirror images are better by 1.1 points
    probabilities = (probabilities + model.predict(batches(x_test[:, :, ::-1], y_test), verbose=0)) / 2
predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)  # (number,) each
accuracy = float(np.mean(predicted == y_test))
loss = float(loss_function(keras.utils.to_categorical(y_test, num_classes), probabilities))
print(f"\nTest accuracy {accuracy:.2%}, loss {loss:.4f}, after {len(history)} epochs in {seconds:.0f} s\n")
report = dict(y_true=y_test, y_pred=predicted, labels=range(num_classes), target_names=class_names,
              digits=4, zero_division=0)
counts = confusion_matrix(y_test, predicted, labels=range(num_classes))  # (true, predicted) int
print(classification_report(**report))
(unfinished / "classification_report.txt").write_text(classification_report(**report), encoding="utf-8")
found = dict(
    validation_accuracy=float(history["val_accuracy"].iloc[-1]), test_accuracy=accuracy, test_loss=loss,
    test_accuracy_single_view=single_view, epochs_trained=len(history), training_seconds=round(seconds, 1),
    parameters=model.count_params())
(unfinished / "metrics.json").write_text(json.dumps(dict(
    **found, settings=settings, versions={module.__name__: module.__version__ for module in (tf, keras, np)},
    classes=classification_report(**report, output_dict=True), confusion_matrix=counts.tolist()), indent=2))

# %% Figure 1: how the learning went
best = history["val_accuracy"].argmax()  # a look back; the saved model is that of the last epoch
figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
for axis, name in zip(axes, ("accuracy", "loss")):
    axis.plot(history["epoch"] + 1, history[name], "o-", markersize=4, label="training")
    axis.plot(history["epoch"] + 1, history["val_" + name], "s--", markersize=4, label="validation")
    axis.plot(best + 1, history["val_" + name][best], "k*", ms=14, label=f"best accuracy: epoch {best + 1}")
    axis.set(title=f"{name.capitalize()} on {title}", xlabel="epoch", ylabel=name)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend()
figure.savefig(unfinished / "accuracy_loss_curves.png", dpi=120)

# %% Figure 2: which class is taken for which
shares = counts / counts.sum(axis=1, keepdims=True).clip(1)  # of each true class, from 0 to 1
short = [name[:16] for name in class_names]
texts = [[f"{n}\n{share:.1%}" if n else "" for n, share in zip(ns, ps)] for ns, ps in zip(counts, shares)]
figure, axis = plt.subplots(figsize=np.clip(3 + 0.6 * num_classes, 6, 22) + [1, 0], layout="constrained")
sns.heatmap(shares, annot=texts if num_classes <= 30 else None, fmt="", cmap="Blues", vmin=0, vmax=1,
            linewidths=0.5, linecolor="lightgrey", xticklabels=short, yticklabels=short,
            cbar_kws=dict(label="share of the true class"), ax=axis)
axis.tick_params("both", rotation=0, labelsize=min(11, 1200 / num_classes))
axis.tick_params("x", rotation=30 if num_classes <= 10 else 90)
axis.set(title=f"Confusion matrix on {title}: {accuracy:.2%} of {len(y_test)} test pictures right",
         xlabel="predicted class", ylabel="true class")
figure.savefig(unfinished / "confusion_matrix.png", dpi=120)

# %% Figures 3 to 5: single test images, where it looks in them, and the mistakes it was surest of
def grad_cam(images, classes):
    """Return how much each place speaks for the given class, (number, height, width) float from 0 to 1.

    A map's weight: how much the class's log-probability grows with it; what speaks against the class is cut off
    (Grad-CAM; Selvaraju et al., 2017). The maps: those that the last block gets. Images: as in x_test, uint8.
    """
    cut = model.layers.index(stages[-2]) + 1
    with tf.GradientTape() as tape:
        maps = keras.Sequential(model.layers[:cut])(images, training=False)  # (number, rows, columns, maps)
        tape.watch(maps)
        answers = keras.Sequential(model.layers[cut:])(maps, training=False)  # (number, num_classes)
        score = tf.math.log(tf.gather(answers, classes, axis=1, batch_dims=1))  # (number,)
    weights = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2), keepdims=True)  # (number, 1, 1, maps)
    heats = tf.nn.relu(tf.reduce_sum(tf.cast(weights * maps, "float32"), axis=3, keepdims=True))
    heats /= tf.reduce_max(heats, axis=(1, 2), keepdims=True) + 1e-9
    return tf.image.resize(heats, images.shape[1:3]).numpy()[..., 0]


right, wrong = np.flatnonzero(predicted == y_test), np.flatnonzero(predicted != y_test)
some = np.concatenate([right[:30 - len(wrong[:10])], wrong[:10]])
surest = wrong[confidence[wrong].argsort()[:-31:-1]]  # some of their labels are wrong; the others teach modesty
heats = plt.cm.inferno(grad_cam(x_test[some], predicted[some]))[..., :3]  # (number, height, width, 3)
marks = f"✓ blue: right     ✗ orange: {len(wrong[:10])} of the {len(wrong)} mistakes"
for name, headline, chosen, images in (
    ("sample_predictions", f"predicted class, confidence and true class\n{marks}", some, x_test[some]),
    ("confident_mistakes", f"{len(surest)} most confident of {len(wrong)} mistakes", surest, x_test[surest]),
    ("where_it_looks", f"what glows speaks for the predicted class (Grad-CAM)\n{marks}", some,
     (x_test[some].mean(axis=3, keepdims=True) / 2 + heats * 127).astype("uint8")),
):
    titles = [f"{'✗' if i in wrong else '✓'} {short[predicted[i]]}, {confidence[i]:.0%}\n"
              f"true: {short[y_test[i]]}" for i in chosen]
    draw_grid(unfinished / f"{name}.png", f"{title}: {headline}", images, titles, np.isin(chosen, wrong))

# %% Figure 6: what it sees, from edges to parts
stage_maps = keras.Model(model.inputs[0], [layer.output for layer in stages])(x_test[:1], training=False)
colours = 0.5 + kernels / np.abs(kernels).max(axis=(0, 1, 2)) / 2  # 0.5, grey: a 0
rows = [(f"{title}: a test picture, and what the network makes of it", x_test[:1] / 255),
        ("filters of whitening, 2 x 2 pixels", np.moveaxis(colours, 3, 0))]
for layer, maps in zip(stages, stage_maps):
    rows += [(f"strongest maps of {layer.name} {maps.shape[1:]}",
              np.array(sorted(np.moveaxis(np.float32(maps[0]), 2, 0), key=np.max)[:-13:-1]))]
figure, axes = plt.subplots(len(rows), 1, figsize=(11, 1.4 * len(rows)), layout="constrained")
for axis, (name, tiles) in zip(axes, rows):
    axis.imshow(np.hstack(tiles), **(dict(cmap="gray", vmin=0, vmax=1) if tiles.ndim == 4 else {}))
    axis.vlines(np.arange(1, len(tiles)) * tiles.shape[2] - 0.5, -0.5, tiles.shape[1] - 0.5, "white", lw=4)
    axis.set(title=name, xticks=[], yticks=[])
figure.savefig(unfinished / "learned_features.png", dpi=120)

# %% Done: the results take their place
results.mkdir(exist_ok=True)
for file in sorted(unfinished.glob("*.*")):  # all files, but not the folder resume
    file.replace(results / file.name)
shutil.rmtree(unfinished)
print(f"In {results.resolve()}: " + ", ".join(sorted(file.name for file in results.iterdir())))

# %% What the change did: a row for this run in the table of all runs, and a look at those before it
table = pathlib.Path(OUTPUT_DIR, "experiments.csv")
row = dict(time=time.strftime("%Y-%m-%d %H:%M:%S"), **now, **found)
try:
    old = pd.read_csv(table, dtype=str) if table.exists() else None
    runs = pd.concat([old, pd.DataFrame([row])]).fillna("unknown").astype(dict(validation_accuracy=float))
    runs.to_csv(table.with_suffix(".new"), index=False)
    table.with_suffix(".new").replace(table)
except (OSError, ValueError) as error:  # open in Excel, say
    stop(f"{table} can't be read and written, so this run's row is missing in it: {error}.")
runs = runs[runs["DATASET"] == DATASET][:-1]
for which, others in dict(last=runs[-1:], best=runs.nlargest(1, "validation_accuracy")).items():
    for other in others.to_dict("records"):  # one, or none
        changed = [f"{name} {other[name]} -> {now[name]}" for name in now if other[name] != now[name]]
        print(f"Validation accuracy {row['validation_accuracy']:.2%}; the {which} run before had "
              f"{other['validation_accuracy']:.2%}. Changed: {', '.join(changed) or 'nothing'}")
