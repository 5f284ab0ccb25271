# /// script
# requires-python = ">=3.11"
# dependencies = ["tensorflow>=2.18,<3", "numpy>=1.26,<3", "matplotlib>=3.9,<4", "seaborn>=0.13.2,<0.14",
#                 "scikit-learn>=1.5,<2"]
# ///
"""Image recognition with a convolutional neural network (CNN), from pixels to pictures.

Loads a data set, trains a small CNN on it, measures it on images it has never seen and draws what
came out into outputs/. Read it from top to bottom: it is written in the order in which it runs. In a
first reading, skip from the settings to "Data": what lies between only reads and checks them.

    python image_recognition_cnn.py                                 # works offline, in half a minute
    python image_recognition_cnn.py --dataset cifar10 --epochs 4    # every setting is a flag
"""

# %% Settings: change a number, run again, and see what it did
# dict(...) holds one value per data set or optimizer; a name that it lacks takes the last one.
# Each line is a command-line flag too, made from the line itself: BATCH_SIZE is --batch-size. A setting
# that can be a fraction keeps its point (0.0), as the flag takes whole numbers otherwise.
# ------------------------------------------------------------------------------------------- settings
# data
DATASET = "digits"  # digits (needs no download), mnist, fashion_mnist or cifar10
VALIDATION_SPLIT = 0.1  # share of the training images held back to watch the training, between 0 and 1
AUGMENTATION = True  # show each training image shifted (and mirrored) at random, anew in every epoch
SHIFT = dict(digits=1, mnist=2, fashion_mnist=2, cifar10=4)  # pixels of the farthest shift, 0 or more
MIRROR = dict(digits=False, mnist=False, others=True)  # left-right too; a mirrored 2 is no digit at all
# model
FILTERS = dict(digits=(32, 64), cifar10=(64, 128, 256), others=(32, 64, 128))  # of each block, 1 or more
DENSE_UNITS = 128  # neurons of the hidden dense layer, 1 or more
DROPOUT = 0.2  # share of these neurons silenced at random in each training step, from 0 to below 1
# training
EPOCHS = dict(digits=30, mnist=5, fashion_mnist=12, cifar10=10)  # passes over the training images, 1 or more
BATCH_SIZE = dict(digits=32, others=128)  # images per step of the optimizer, 1 or more
OPTIMIZER = "adam"  # adam, or sgd (with Nesterov momentum 0.9)
LEARNING_RATE = dict(adam=0.004, sgd=0.1)  # factor on each step, above 0, up to 10: the peak of its curve
WEIGHT_DECAY = dict(adam=0.25, sgd=0.01)  # share of each weight lost per unit of learning rate, 0 to 100
LABEL_SMOOTHING = 0.2  # share of each label spread evenly over all classes, from 0 to below 1
PRECISION = "float32"  # of the arithmetic: float32, mixed_bfloat16 or mixed_float16
SEED = 0  # start of all random numbers, 0 to 4294967295; same seed and same machine: same result
# results
OUTPUT_DIR = "outputs"  # a folder; each data set gets its own in it, where a new run replaces the last
# -------------------------------------------------------------------------------- end of the settings

# %% Flags, before anything slow: --help and a mistake answer at once
import argparse, json, os, pathlib, re, shutil, socket, sys, tempfile, time

settings = {name: value for name, value in globals().items() if name.isupper()}  # the block above
meanings = {}


def stop(sentence):
    """End the program with one sentence on stderr and exit status 2, the mark of wrong use."""
    print("image_recognition_cnn.py:", sentence, file=sys.stderr)
    sys.exit(2)


if "ipykernel" not in sys.modules:  # a notebook has no command line; there the block above is all
    source = pathlib.Path(__file__).read_text(encoding="utf-8")
    meanings = dict(re.findall(r"^([A-Z_0-9]+) = .+? +# (.+)", source, re.MULTILINE))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.error = stop
    kinds = {bool: dict(action=argparse.BooleanOptionalAction), tuple: dict(type=int, nargs="+")}
    for name, default in settings.items():
        kind = type([*default.values()][-1] if isinstance(default, dict) else default)
        parser.add_argument("--" + name.lower().replace("_", "-"), default=default,
                            help=meanings.get(name, ""), **kinds.get(kind, dict(type=kind)))
    settings = {name.upper(): value for name, value in vars(parser.parse_args()).items()}
    getattr(sys.stdout, "reconfigure", dict)(errors="replace")  # a console may lack Keras' line drawing
    os.environ["MPLBACKEND"] = "Agg"  # draw into files: works with no screen, and no window holds up the run
for name, value in settings.items():
    if isinstance(value, dict):
        last = [*value.values()][-1]
        settings[name] = value.get(settings["DATASET"], value.get(settings["OPTIMIZER"], last))
globals().update(settings)

# %% Checks of all that can be checked before the work starts
data_sets = {  # width and height of the images in pixels, and the names of the classes
    "digits": (8, "0,1,2,3,4,5,6,7,8,9"),
    "mnist": (28, "0,1,2,3,4,5,6,7,8,9"),
    "fashion_mnist": (28, "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"),
    "cifar10": (32, "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"),
}
image_size, class_names = data_sets.get(DATASET, (32, ""))
class_names = class_names.split(",")
for name, allowed in dict(
    DATASET=DATASET in data_sets, VALIDATION_SPLIT=0 < VALIDATION_SPLIT < 1, SHIFT=0 <= SHIFT < image_size,
    FILTERS=min(FILTERS) >= 1, DENSE_UNITS=DENSE_UNITS >= 1, DROPOUT=0 <= DROPOUT < 1, EPOCHS=EPOCHS >= 1,
    BATCH_SIZE=BATCH_SIZE >= 1, OPTIMIZER=OPTIMIZER in ("adam", "sgd"), LEARNING_RATE=0 < LEARNING_RATE <= 10,
    WEIGHT_DECAY=0 <= WEIGHT_DECAY <= 100, LABEL_SMOOTHING=0 <= LABEL_SMOOTHING < 1,
    PRECISION=PRECISION in ("float32", "mixed_bfloat16", "mixed_float16"), SEED=0 <= SEED < 2**32,
).items():
    if not allowed:
        flag, meaning = "--" + name.lower().replace("_", "-"), meanings.get(name, "see the settings")
        stop(f"{flag} can't be {settings[name]}: {meaning}.")
if (most := image_size.bit_length() - 1) < len(FILTERS):
    stop(f"--filters {FILTERS} is too long: a block halves the image, and {image_size} pixels allow {most}.")

# Results are collected in a folder of their own and take their place at the very end, so that a run
# that fails leaves the results of the run before it as they were. Two runs at once need two --output-dir.
results, unfinished = pathlib.Path(OUTPUT_DIR, DATASET), pathlib.Path(OUTPUT_DIR, DATASET + ".unfinished")
try:
    shutil.rmtree(unfinished, ignore_errors=True)
    for folder in results, unfinished:
        folder.mkdir(parents=True, exist_ok=True)
except OSError as error:
    stop(f"--output-dir {OUTPUT_DIR} can't be written ({error.strerror}); name a folder of your own.")

# %% Libraries: the slow imports, three seconds of mostly TensorFlow
os.environ |= dict(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="1")  # 1: no notes, but warnings
# While it loads, TensorFlow 2.21 does not look at its log level yet and writes notes straight to stream 2.
with tempfile.TemporaryFile("w+") as log:
    stderr = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        import tensorflow as tf
    finally:
        os.dup2(stderr, 2)
        log.seek(0)
        sys.stderr.writelines(line for line in log if not line.startswith(("I0000", "WARNING: All log")))
import keras  # Keras 3, which comes with TensorFlow
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from keras import layers
from sklearn.datasets import load_digits
from sklearn.metrics import classification_report, confusion_matrix
from sklearn.model_selection import train_test_split

print("Settings:", ", ".join(f"{name} {value}" for name, value in settings.items()))
keras.utils.set_random_seed(SEED)  # Python's, NumPy's and TensorFlow's random numbers
keras.config.set_dtype_policy(PRECISION)
if tf.config.list_physical_devices("GPU"):
    print("Note: a GPU adds numbers in varying order, so two runs with one seed can differ slightly.")

# %% Data: images (number, height, width, channels), uint8 from 0 to 255; labels (number,), int
store = "storage.googleapis.com/tensorflow/tf-keras-datasets/"
downloads = {  # where Keras fetches a data set, and under which name it looks for a copy before that
    "mnist": (store + "mnist.npz", "mnist.npz"),
    "fashion_mnist": (store, "fashion-mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"),
    "cifar10": ("www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "cifar-10-batches-py-target_archive"),
}
if DATASET == "digits":
    images, labels = load_digits(return_X_y=True)  # (1797, 64) float64 from 0 to 16, (1797,)
    images = (images * 255 / 16).round().astype("uint8").reshape(-1, 8, 8)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0)  # one test set for every seed
else:
    socket.setdefaulttimeout(60)  # seconds; a dead connection would hold up the run for ever
    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, DATASET).load_data()
    except Exception as error:
        home = pathlib.Path(os.environ.get("KERAS_HOME", pathlib.Path.home() / ".keras"))
        home = home if os.access(home, os.W_OK) else pathlib.Path(tempfile.gettempdir(), ".keras")
        address, name = downloads[DATASET]
        stop(f"{DATASET} could not be loaded from https://{address} ({error}): put a copy of the file at "
             f"{home / 'datasets' / name}, or run --dataset digits, which needs no download.")

x_train, x_test = (x.reshape(*x.shape[:3], -1) for x in (x_train, x_test))  # grey images get a channel
y_train, y_test = y_train.ravel(), y_test.ravel()  # CIFAR-10 has them as (number, 1)
num_classes = len(class_names)
# The validation images are cut from the training images, the same share of every class. Choose settings by
# them: the test images are looked at once, at the end. Who tunes on the test set fools himself.
try:
    x_train, x_val, y_train, y_val = train_test_split(
        x_train, y_train, test_size=VALIDATION_SPLIT, stratify=y_train, random_state=SEED)
except ValueError as error:
    stop(f"--validation-split is {VALIDATION_SPLIT}, which leaves too few images in a part ({error}).")
print(f"{len(x_train)} images to train on, {len(x_val)} to validate and {len(x_test)} to test")

# %% Model: read it as a table; behind each layer, the shape of what comes out of it
# Normalization stands inside the model, so the saved model takes raw pixels and can't be fed wrongly.
normalization = layers.Normalization()  # (pixel - mean) / standard deviation, for each channel
normalization.adapt(x_train[:10_000])  # enough for the mean; all of CIFAR-10 would need 0.5 GB more
share = SHIFT / x_train.shape[1]
augmentation = [  # acts in training only, where no image is then seen twice in quite the same way
    layers.RandomTranslation(share, share, fill_mode="reflect", interpolation="nearest"),
    *([layers.RandomFlip("horizontal")] if MIRROR else []),
] if AUGMENTATION else []


def block(filters):
    """Layers that turn features (height, width, any) into (height // 2, width // 2, filters), all float32.

    Pooling comes right after the first convolution, so that all behind it works on a quarter of the pixels
    (Jordan, 2024). Batch normalization (Ioffe and Szegedy, 2015) allows large steps: it subtracts the mean
    of the batch, so a convolution before it needs no bias, and divides by the spread. In a test it uses
    averages over the last batches; momentum 0.6 forgets older ones quickly, as the network changes fast.
    """
    return [
        layers.Conv2D(filters, 3, padding="same", use_bias=False),  # (height, width, filters)
        layers.MaxPooling2D(),  # (height // 2, width // 2, filters)
        layers.BatchNormalization(momentum=0.6),
        layers.ReLU(),
        layers.Conv2D(filters, 3, padding="same", use_bias=False),  # (height // 2, width // 2, filters)
        layers.BatchNormalization(momentum=0.6),
        layers.ReLU(),
    ]


model = keras.Sequential([
    keras.Input(x_train.shape[1:]),  # (height, width, channels), as all up to the first block
    *augmentation,
    normalization,
    *[layer for filters in FILTERS for layer in block(filters)],  # CIFAR-10: (4, 4, 256)
    layers.Flatten(),  # (4096,)
    layers.Dense(DENSE_UNITS, activation="relu"),  # (128,)
    layers.Dropout(DROPOUT),
    layers.Dense(num_classes, activation="softmax", dtype="float32"),  # (10,), float32 in any PRECISION
])
model.summary()

# %% Training
# The rate rises from 0 over the first fifth of the run, as the first gradients of a random network mislead
# (warm-up; Goyal et al., 2017), and then falls to 0 along a cosine, so that the weights come to rest
# (Loshchilov and Hutter, 2017). Weight decay is decoupled from the gradient, as in AdamW (same, 2019).
steps = EPOCHS * int(np.ceil(len(x_train) / BATCH_SIZE))
rate = keras.optimizers.schedules.CosineDecay(
    0.0, steps - steps // 5, warmup_target=LEARNING_RATE, warmup_steps=max(1, steps // 5))
optimizer = (keras.optimizers.Adam(rate, weight_decay=WEIGHT_DECAY) if OPTIMIZER == "adam" else
             keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY))
optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])  # offsets and scales don't overfit
# Label smoothing asks for less than certainty, so that the network need not push its outputs to extremes
# (Szegedy et al., 2016). At 0.2 and ten classes it asks for 0.82 in place of 1, and the lowest loss is 0.87.
loss_function = keras.losses.CategoricalCrossentropy(label_smoothing=LABEL_SMOOTHING)
model.compile(optimizer, loss_function, metrics=["accuracy"])


def batches(images, labels, shuffle=False):
    """Serve images (uint8) with one-hot labels (float32; class 2 of 4: 0, 0, 1, 0) as a tf.data.Dataset.

    Given arrays, fit makes such a pipeline itself, but with autotune, whose thread sleeps on for up to a
    minute when an epoch is over (TensorFlow 2.21): on CIFAR-10, 140 s an epoch instead of 100 s.
    """
    images, labels = tf.constant(images), tf.constant(keras.utils.to_categorical(labels, num_classes))
    order = tf.data.Dataset.range(len(images))
    order = order.shuffle(len(images), seed=SEED) if shuffle else order  # another order in each epoch
    data = order.batch(BATCH_SIZE).map(lambda i: (tf.gather(images, i), tf.gather(labels, i))).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


started = time.perf_counter()
history = model.fit(
    batches(x_train, y_train, shuffle=True), validation_data=batches(x_val, y_val), epochs=EPOCHS,
    callbacks=[keras.callbacks.CSVLogger(unfinished / "history.csv")], shuffle=False,  # done by batches
    verbose=1 if sys.stdout.isatty() else 2,  # a moving bar on a screen, a line per epoch in a file
).history
seconds = time.perf_counter() - started
model.save(unfinished / "model.keras")  # before anything that can still go wrong

# %% Evaluation: the one look at the test images
probabilities = model.predict(batches(x_test, y_test), verbose=0)  # (number, classes) float32; ignores y_test
predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)  # (number,) each
accuracy = float(np.mean(predicted == y_test))
loss = float(loss_function(keras.utils.to_categorical(y_test, num_classes), probabilities))
print(f"\nTest accuracy {accuracy:.2%}, loss {loss:.4f}, after {seconds:.0f} s of training\n")

report = dict(y_true=y_test, y_pred=predicted, labels=range(num_classes), target_names=class_names,
              digits=4, zero_division=0)
counts = confusion_matrix(y_test, predicted, labels=range(num_classes))  # (true, predicted) int
print(classification_report(**report))
(unfinished / "classification_report.txt").write_text(classification_report(**report), encoding="utf-8")
(unfinished / "metrics.json").write_text(json.dumps(dict(
    test_accuracy=accuracy, test_loss=loss, validation_accuracy=history["val_accuracy"][-1],
    training_seconds=round(seconds, 1), parameters=model.count_params(), settings=settings,
    versions=dict(python=sys.version.split()[0], tensorflow=tf.__version__, keras=keras.__version__),
    classes=classification_report(**report, output_dict=True), confusion_matrix=counts.tolist(),
), indent=2), encoding="utf-8")

# %% Picture 1: how the learning went
sns.set_theme(style="ticks", palette="colorblind", font="DejaVu Sans")  # for colour-blind eyes; with ✓
best = int(np.argmax(history["val_accuracy"]))  # a look back; the saved model is that of the last epoch
figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
for axis, name in zip(axes, ("accuracy", "loss")):
    for line, key, label in (("o-", name, "training"), ("s--", "val_" + name, "validation")):
        axis.plot(range(1, len(history[key]) + 1), history[key], line, markersize=4, label=label)
    axis.plot(best + 1, history["val_" + name][best], "k*", markersize=14, label=f"best: epoch {best + 1}")
    axis.set(title=f"{name.capitalize()} on {DATASET}", xlabel="epoch", ylabel=name)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.4)
    axis.legend()
figure.savefig(unfinished / "accuracy_loss_curves.png", dpi=120)

# %% Picture 2: which class is taken for which
shares = counts / counts.sum(axis=1, keepdims=True).clip(1)  # of the pictures of each true class
figure, axis = plt.subplots(figsize=(10, 9), layout="constrained")
texts = [[f"{n}\n{share:.1%}" if n else "" for n, share in zip(ns, ps)] for ns, ps in zip(counts, shares)]
sns.heatmap(shares, annot=texts, fmt="", cmap="Blues", vmin=0, vmax=1, linewidths=0.5, linecolor="lightgrey",
            xticklabels=class_names, yticklabels=class_names, cbar_kws=dict(label="share of the true class"),
            ax=axis)
axis.tick_params(axis="y", rotation=0)
axis.tick_params(axis="x", rotation=30)
axis.set(title=f"Confusion matrix on {DATASET}: {accuracy:.2%} of {len(y_test)} test pictures right",
         xlabel="predicted class", ylabel="true class")
figure.savefig(unfinished / "confusion_matrix.png", dpi=120)

# %% Picture 3: what it says to single pictures
right, wrong = np.flatnonzero(predicted == y_test), np.flatnonzero(predicted != y_test)
shown = [*right[:30 - len(wrong[:10])], *wrong[:10]]
bare = dict(xticks=[], yticks=[], frame_on=False)
figure, axes = plt.subplots(5, 6, figsize=(11, 11), layout="constrained", subplot_kw=bare)
figure.suptitle(f"{DATASET}: predicted class, confidence and true class of test pictures\n"
                f"✓ blue: right     ✗ orange: {len(wrong[:10])} of the {len(wrong)} mistakes")
for axis, i in zip(axes.flat, shown):
    good = predicted[i] == y_test[i]
    axis.set_frame_on(True)
    axis.imshow(x_test[i].squeeze(), cmap="gray")
    axis.set_title(f"{'✓' if good else '✗'} {class_names[predicted[i]]}, {confidence[i]:.0%}\n"
                   f"true: {class_names[y_test[i]]}", fontsize=10)
    axis.spines[:].set(color="C0" if good else "C3", linewidth=2 if good else 5)
figure.savefig(unfinished / "sample_predictions.png", dpi=120)

# %% Done: the results take their place
for file in sorted(unfinished.iterdir()):
    file.replace(results / file.name)
unfinished.rmdir()
print(f"In {results.resolve()}: " + ", ".join(sorted(file.name for file in results.iterdir())))
