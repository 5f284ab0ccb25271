"""Image recognition with a convolutional neural network (CNN), from raw pixels to results.

    python image_recognition_cnn.py                                # small digits, no download
    python image_recognition_cnn.py --dataset cifar10 --epochs 4   # every setting is a flag
    python image_recognition_cnn.py --dataset my/pictures          # a sub-folder for each class
    python image_recognition_cnn.py --dataset mnist --predict photo.jpg   # asks a trained network

Run it once without flags (half a minute), then read from top to bottom with the pictures of that
run, in outputs/digits, beside you: main() with the whole story on one page, then the chapters. (The
settings come first, but you can come back to them later.) Chapters 1 to 8 are the lesson: 1 Data,
2 A look at the data, 3 How a network learns, 4 Model, 5 Training, 6 Test, 7 Pictures, 8 Transfer
learning. The others are tools: 9 Your own pictures, 10 Beyond the script (browser, phone),
11 Settings and results.
"""
import argparse
import atexit
import base64
import contextlib
import glob
import json
import logging
import math
import os
import pathlib
import re
import shutil
import socket
import sys
import tempfile
import textwrap
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor

# Keras, TensorFlow and Matplotlib read these as they load.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # a faster library for CPUs
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors, but no notes
os.environ.setdefault("MPLBACKEND", "Agg")  # draws into files: no window opens

import joblib
import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import tensorflow as tf
from keras import callbacks, layers
from matplotlib import font_manager
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage, stats
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report, confusion_matrix
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors

tf.get_logger().setLevel("ERROR")  # else it warns about many short predictions, which are intended
logging.getLogger("PIL").setLevel("CRITICAL")  # chapter 9 says which pictures can't be read

# %% Settings: change a number, run again, and see what it did
# A dict(...) holds one value for each case: in EPOCHS, mnist has 4; digits is not named, so it gets
# the value for others, 30. Where several cases fit, the most specific one is used, in this order:
# the OPTIMIZER, the MODEL, pretrained (any MODEL that knows ImageNet), the name of the data set or
# of your own folder, others. So LEARNING_RATE is 0.008 for cifar10, but 0.1 for cifar10 with
# --optimizer sgd. Each setting is a flag as well: --batch-size 64, --filters 32 64, --no-whitening.
# After each value come its meaning and its range. The terms are explained in chapters 3 to 5: on a
# first reading, go straight to main(). Each number in FILTERS makes one block of layers, which
# halves the height and the width of the image: with WHITENING, digits (8x8 pixels) have room for
# one block, MNIST (28x28) for three.
# data
DATASET = "digits"  # digits (no download), mnist, fashion_mnist, cifar10, a folder or an .npz file
IMAGE_SIZE = dict(pretrained=96, others=64)  # side of your pictures (pretrained: of all), 8 to 512
VALIDATION_SPLIT = dict(cifar10=0.04, others=0.1)  # share of training images held out, 0.001 to 0.9
SHIFT = dict(digits=1, fashion_mnist=1, others=2)  # largest random shift, 0 to 512 pixels
MIRROR = dict(fashion_mnist=True, cifar10=True, others=False)  # swap left and right at random
# model
MODEL = "cnn"  # cnn, or a network that has learned from ImageNet: mobilenet_v2, vgg16, resnet50
FILTERS = dict(digits=[64], cifar10=[32, 96, 192], others=[32, 64, 128])  # per block, 1 to 4096
WHITENING = True  # begin with a layer whose filters are computed from the images, not learned
BATCH_NORMALIZATION = True  # keep the mean and spread of each map in the blocks steady
IDENTITY_START = True  # begin with convolutions that pass their input on, not with random ones
DENSE_UNITS = dict(cifar10=0, others=128)  # size of the layer before the last, 0 (none) to 100000
DROPOUT = dict(cifar10=0, others=0.2)  # share of the last layer's inputs left out, 0 to 0.99
# training
EPOCHS = dict(mnist=4, fashion_mnist=12, cifar10=10, others=30)  # passes over the images, 1 or more
BATCH_SIZE = dict(mnist=128, fashion_mnist=128, cifar10=128, others=32)  # images per step, from 1
OPTIMIZER = "adam"  # adam or sgd
LEARNING_RATE = dict(sgd=0.1, pretrained=0.002, cifar10=0.008, others=0.004)  # step size, up to 10
SCHEDULE = "cosine"  # cosine (the learning rate rises, then falls to 0), or constant
WEIGHT_DECAY = dict(sgd=0.01, pretrained=5.0, others=0.25)  # weights lose this * rate; 0 to 100
FINE_TUNE = 0  # more epochs, with the last part of a pretrained MODEL trained, too; 0 or more
SEED = 0  # start of the random numbers in training, 0 to 4294967295
# results
OUTPUT_DIR = "outputs"  # folder for results; the last run on each data set has a sub-folder
RESUME = False  # continue a run that was cut off, from its last finished epoch
PREDICT = []  # pictures to classify with the network of an earlier run, instead of training


# %% The story on one page
def main(words=()):
    """Train a network, test it, and draw what came out. words: the flags (see read_settings)."""
    settings = read_settings(words)  # the block above, changed by flags (chapter 11)
    plt.close("all")  # the figures of an earlier run in the same notebook
    keras.utils.set_random_seed(settings.SEED)  # the random numbers of Python, NumPy, TensorFlow
    if settings.PREDICT:
        return predict_pictures(settings)  # with the network of an earlier run (chapter 9)
    print("Settings:", ", ".join(f"{name} {value}" for name, value in vars(settings).items()))
    (x_train, y_train), (x_val, y_val), (x_test, y_test), class_names = load_data(settings)
    names = [textwrap.fill(name, 16) for name in class_names]  # long ones on several lines
    title = data_title(settings.DATASET)
    # A string that changes if any pixel or label does: only runs on the same data can be compared.
    data_hash = joblib.hash([x_train, y_train, x_val, y_val, x_test, y_test, class_names])
    folder = open_results_folder(settings, data_hash)  # chapter 11

    describe_data(x_train, y_train, x_val, y_val, x_test, names)
    draw_training_images(x_train, y_train, names, title, folder, settings)
    draw_one_filter(folder)  # chapter 3, which trains only nine weights

    if settings.MODEL == "cnn":
        model = build_cnn(x_train, len(names), settings)
        model.summary()
        show_one_step(model, x_train, y_train)
        history = train(model, x_train, y_train, x_val, y_val, folder, settings)
    else:  # a network that knows a million photos (chapter 8)
        model = build_pretrained(x_train.shape[1:], len(names), settings)
        history = train_pretrained(model, x_train, y_train, x_val, y_val, folder, settings)
    # Saved now, before anything can go wrong.
    about = save_model(model, x_train, class_names, settings.DATASET, folder)

    probabilities, results = evaluate(model, x_val, y_val, x_test, y_test, class_names)
    report(results, probabilities, y_test, class_names, folder)

    draw_curves(history, title, folder)
    draw_confusion_matrix(results["confusion_matrix"], names, title, folder)
    draw_predictions(x_test, y_test, probabilities, names, title, folder)
    draw_where_it_looks(model, x_test, y_test, probabilities, names, title, folder)
    if settings.MODEL == "cnn":
        draw_learned_features(model, x_test, y_test, probabilities, names, title, folder)

    write_page(model, class_names, about, title, folder)  # chapter 10
    write_phone_model(model, folder)
    metrics = publish_results(folder, settings, results, history)  # chapter 11
    record_experiment(settings, metrics, data_hash)
    shutil.rmtree(folder, ignore_errors=True)  # what --resume would have needed
    return model, history, metrics


# %% 1. Data: images to learn from, to monitor learning with, and to test on
# An image is a block of numbers (height, width, channels): whole numbers from 0 (dark) to 255
# (bright). One channel is grey; three are red, green and blue. The label of an image is the index
# of its class: 0 for the first class. In the shapes of arrays below, n stands for how many images
# there are. stop(sentence) ends the program, warn(sentence) lets it go on (chapter 11).
CLASS_NAMES = {
    "digits": list("0123456789"), "mnist": list("0123456789"),
    "fashion_mnist": ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                      "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer",
                "dog", "frog", "horse", "ship", "truck"],
}


def load_data(settings):
    """Return three parts and the names of the classes.

    A part is a pair: images (n, height, width, channels) uint8, and labels (n,) int. The network
    learns from the training images. The validation images are held back from these: use them to
    compare settings. Every run prints the accuracy on the test images, too, but do not choose by
    it: a setting that was chosen because it suits these images looks better than it is.
    """
    if settings.DATASET not in CLASS_NAMES:
        return load_own_data(settings)  # chapter 9
    if settings.DATASET == "digits":  # handwritten; scikit-learn's pixels go from 0 to 16
        digits = load_digits()
        images = np.round(digits.images * 255 / 16).astype("uint8")  # (1797, 8, 8)
        images = images[..., np.newaxis]  # (1797, 8, 8, 1): with one channel
        # 0.2 is not a setting: all runs share the same test images, so they can be compared.
        training, test = split((images, digits.target), share=0.2)  # 1,438 and 359 images
    else:
        training, test = load_keras_dataset(settings.DATASET)
    training, validation = split(training, share=settings.VALIDATION_SPLIT)  # 1,294 and 144
    return training, validation, test, CLASS_NAMES[settings.DATASET]


def load_keras_dataset(name):
    """Return the training and the test part of a data set that Keras downloads once."""
    place = {  # in Keras' folder: without internet, put a copy there
        "mnist": "datasets/mnist.npz",
        "fashion_mnist": "datasets/fashion-mnist/*.gz",
        "cifar10": "datasets/cifar-10-batches-py-target_archive",
    }[name]
    parts = []
    load = getattr(keras.datasets, name).load_data
    for images, labels in from_keras(load, place):  # chapter 11
        if images.ndim == 3:
            images = images[..., np.newaxis]  # (60000, 28, 28) becomes (60000, 28, 28, 1)
        parts.append((images, labels.ravel().astype(int)))
    return parts


def split(part, share):
    """Split off a share, the same from every class ("stratified"); return the rest and the share.

    The split is the same in every run, whatever SEED is, so that two runs can be compared.
    """
    labels = part[1]
    count = max(round(share * len(labels)), len(np.unique(labels)))  # one for each class, or more
    try:
        pieces = train_test_split(*part, test_size=count, stratify=labels, random_state=0)
    except ValueError as error:
        stop(f"a share of {share} of {len(labels)} images can't be split off (for the test images "
             f"it is 0.2, for the validation images VALIDATION_SPLIT): {error}.")
    return pieces[0::2], pieces[1::2]  # for each array: the rest, then the share


# %% 2. A look at the data: before any training, know what you have
# Is every class present, and are all about equally frequent? Are the labels right? Would you
# recognize the images yourself? And how good are answers without a network? The network has to beat
# them. (On digits: 10.4 % for always saying the commonest class, 91.0 % for logistic regression.)
# Try: --shift 3 --mirror. Look at the bottom row of training_images.png: are these still digits
# that somebody could have written, and do their labels still fit?

# The pictures have colours that even the colour-blind can tell apart. A $ in a class name does not
# start a formula.
sns.set_theme(style="whitegrid", palette="colorblind", rc={"text.parse_math": False})


def describe_data(x_train, y_train, x_val, y_val, x_test, names):
    """Print the sizes of the parts, the form of the images, and how good simple answers are."""
    print(f"{len(names)} classes, {len(x_train)} training images, {len(x_val)} validation, "
          f"{len(x_test)} test")
    print(f"x_train: shape {x_train.shape}, dtype {x_train.dtype}, "
          f"values {x_train.min()} to {x_train.max()}")
    commonest = np.bincount(y_train).argmax()
    print(f"Without a network: always saying the commonest class gets "
          f"{np.mean(y_val == commonest):.1%} of {len(y_val)} validation images right")
    # Logistic regression: each class has a weight for each pixel. Every pixel is multiplied by its
    # weight, and the products and one more weight, the bias, are added up; the class with the
    # largest sum is the answer. A sample, spread over the classes, is enough.
    some = spread_over_classes(y_train, 3000)
    regression = LogisticRegression(C=0.1, tol=0.01)  # C, tol: keep weights small, stop early
    regression.fit(small_and_flat(x_train[some]), y_train[some])
    share = regression.score(small_and_flat(x_val), y_val)
    print(f"Without a network: logistic regression on {len(some)} small images, {share:.1%}")


def small_and_flat(images):
    """Shrink images (n, height, width, channels) to 8x8 pixels, 0 to 1: (n, 64 * channels)."""
    small = tf.image.resize(images, (8, 8), method="area") / 255  # area: the mean of the pixels
    return np.reshape(small, (len(images), -1))


def spread_over_classes(labels, most):
    """Return up to `most` indices: the first image of each class, then the second of each ..."""
    occurrence = pd.Series(labels).groupby(labels).cumcount()  # 0 for the first image of its class
    # lexsort sorts by its last key first: by occurrence and, where that is equal, by label.
    return np.lexsort((labels, occurrence))[:most]


def draw_training_images(x_train, y_train, names, title, folder, settings):
    """Draw 24 training images, how many each class has, and one image moved eight times."""
    figure = plt.figure(figsize=(13, 9), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[3, 1])
    left, right = upper.subfigures(1, 2, width_ratios=[2, 1])

    chosen = spread_over_classes(y_train, 24)
    left.suptitle(f"{title}: {len(chosen)} of {len(x_train):,} training images")
    draw_grid(left, x_train[chosen], [names[label] for label in y_train[chosen]], columns=6)

    axis = right.subplots()
    commonest = pd.Series(y_train).value_counts().index[:40]  # there is no room for more
    sns.countplot(y=[names[label] for label in y_train], ax=axis,
                  order=[names[label] for label in sorted(commonest)])
    axis.bar_label(axis.containers[0], fontsize=9)
    axis.margins(x=0.15)  # room for these numbers
    axis.set(title=f"Training images of {len(commonest)} classes", xlabel="how many images")

    views = x_train[[chosen[0]] * 9].astype("float32")  # (9, height, width, channels)
    for layer in augmentation_layers(views.shape[1:], settings):  # moves and mirrors (chapter 4)
        views[1:] = layer(views[1:], training=True)
    headline = ("One training image, and what the network may get instead of it in each epoch\n"
                f"(augmentation: SHIFT {settings.SHIFT}, MIRROR {settings.MIRROR}")
    if settings.MODEL != "cnn":
        headline += "; before fine-tuning, images are only mirrored"
    lower.suptitle(f"{headline})")
    texts = ["the image", *(f"epoch {epoch}" for epoch in range(1, 9))]
    draw_grid(lower, views.round().clip(0, 255).astype("uint8"), texts, columns=9)
    figure.savefig(folder / "training_images.png", dpi=120)


def draw_grid(figure, images, texts, columns):
    """Draw images (height, width, channels) uint8 in rows, a text above each; return their axes."""
    rows = math.ceil(len(images) / columns)
    axes = []
    for place, (image, text) in enumerate(zip(images, texts), start=1):
        axis = figure.add_subplot(rows, columns, place, xticks=[], yticks=[])
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        axis.set_title(text, fontsize=9)
        axes.append(axis)
    return axes


# %% 3. How a network learns: first one filter, with all its numbers (look at one_filter.png)
#
# How a filter works.
# A filter is a small square of numbers, its weights; here nine. It is laid on each 3x3 patch of the
# image in turn. Each pixel is multiplied by the weight on it, and the nine products are added up.
# The framed patch in one_filter.png, and the filter:
#     0 0 4     -1 0 1
#     0 3 9     -1 0 1     4 + 9 + 8 - 0 - 0 - 0 = 21 (the middle column has weight 0)
#     0 2 8     -1 0 1
# In 8x8 pixels there are 6x6 such patches. Their 36 sums are the filter's map of the image, and the
# whole operation is called a convolution. Among patches of the same contrast, a large sum says
# that the patch is like the filter: darker on the left, brighter on the right, so a stroke begins
# here. ReLU turns sums below 0 into 0.
#
# How a filter is learned.
# The weights of a network are not chosen by hand like these. Many begin as random numbers (chapter
# 4 starts others in other ways), and the training changes them, a little in each step. Below, nine
# random weights are trained to make the map above. The learner is given the image and the 36 wanted
# sums, never the filter, and after 100 steps it has nearly the filter's weights. (In a network,
# nobody gives such a map. There is only the right class of each image, and what each filter
# responds to is a result of training.)
# What training makes small is the loss, one number that says how wrong the answers are. The
# gradient says, for each weight, how fast the loss grows if this weight grows. If it is above 0, a
# slightly smaller weight is better; if it is below 0, a slightly larger one. So each step goes
# against the gradient. In the first step, the gradient of the first weight is 79.7, and the rate,
# the factor that makes a step large or small, is 0.005: the weight becomes 0.126 - 0.005 * 79.7 =
# -0.27. The other eight are changed in the same way, and the loss falls from 299 to 132. (This is
# called gradient descent.)
# Try: write rate=0.01 below and run again. In one_filter.png, the loss falls once, then it grows
# and grows. Why? (A step that is too large goes beyond the lowest point, and ends up higher on the
# other side.)
def learn_one_filter(patches, wanted, weights, rate=0.005, steps=100):
    """Learn the nine weights of a filter; return (weights, loss) of each step, from step 0 on.

    patches: (36, 9), the nine pixels at each place of the filter. wanted: (36,), the sums to reach.
    """
    history = []
    for _ in range(steps + 1):
        sums = patches @ weights  # 1. forward: the filter's sums now, (36,)
        errors = sums - wanted
        loss = np.mean(errors ** 2)  # 2. loss: the mean of the squared errors
        history.append((weights, loss))
        # 3. gradient: if a weight grows by 1, each sum grows by the pixel under it, and a squared
        # error grows 2 * error times as fast as its sum: so 2 x the mean of (pixel x error), (9,)
        # (With a pixel of 4 and an error of 10: if the weight grows by 0.01, the error grows to
        # 10.04, and its square from 100 to 100.8. That is 80 times 0.01, and 80 = 2 * 4 * 10.)
        gradient = 2 * patches.T @ errors / len(patches)
        weights = weights - rate * gradient  # 4. update: a small step against the gradient
    return history


# From one filter to a network. A network is a chain of layers: each one makes new numbers out of
# those of the layer before it.
# - A convolution has many filters, each with a map of its own: in the default run, mostly 64.
#   The maps are the channels of the next layer, as red, green and blue are those of a photo. A
#   filter usually has nine weights for each channel that comes in. With eight channels, it lies on
#   a patch of 8 * 9 = 72 numbers and has 72 weights; all 72 products are added up to one sum, so
#   each filter still gives one map. Often one more weight is added, the bias. Why filters? The same
#   few weights serve all places, so a stroke is recognized wherever it is. If each pixel had
#   weights of its own, each place would have to learn the stroke anew.
# - Pooling: of each square of 2x2 numbers in a map, only the largest is handed on. The map becomes
#   half as high and half as wide, and a pattern may lie a pixel further left or right, often
#   without changing anything.
# - Dense: a layer of sums, each called a neuron. As in the logistic regression of chapter 2, each
#   has a weight for every number that comes in, and a bias.
# - ReLU comes between the layers: without it, several convolutions or dense layers, one after
#   another, could do no more than a single larger one, as sums of sums are only sums.
# - Softmax turns the sums of the last layer into probabilities: each sum z becomes e^z, divided by
#   the total of all e^z. The sums 2, 1, 0 become 7.4, 2.7, 1.0 and, divided by their total of 11.1,
#   0.67, 0.24, 0.09.
#
# The loss of a network. For each image we know the right class, and the probability p that the
# network gives it. The loss is -log(p), the natural logarithm: -log(0.9) = 0.1, -log(0.5) = 0.7,
# -log(0.1) = 2.3, -log(0.001) = 6.9. So being sure and wrong costs most. For several images, the
# mean is taken. (This is called categorical crossentropy.) Guesses of 0.1 for each of ten classes
# cost 2.3; an untrained network can cost more, as its probabilities are not equal: on digits,
# 2.4.
#
# The chain rule finds the gradient of a weight that is followed by other layers. Take a network of
# two weights: answer = w2 * relu(w1 * x) with x = 2, w1 = 3, w2 = 0.5. Forward: w1 * x = 6, relu(6)
# is 6, answer = 3. How much does the answer move if w1 moves a little? Backward, from the end:
#     if relu(...) moves by 1, the answer moves by w2:                                 0.5
#     if w1 * x moves by 1, relu(...) moves by 1 (below 0, it would not move at all):  1 * 0.5
#     if w1 moves by 1, w1 * x moves by x:                                             2 * 1 * 0.5
# So the answer moves just as much as w1. Check it: with w1 = 3.1 the answer is 3.1. The loss that
# follows multiplies this by one more factor: for (answer - wanted)^2 it is 2 * (answer - wanted).
# Where a weight acts at several places, as a filter's weights do, its effects are added up.
# TensorFlow does all this for each weight of a network, from the loss backwards, which is called
# backpropagation.
#
# Batch, step, epoch. The default run has 1,294 training images. A step takes only 32 of them, a
# batch: their mean gradient is rough, but 40 rough steps achieve more than one exact step. After 40
# steps, all images but 14 have been used once (a batch that is not full is left out). That is an
# epoch. Then they are shuffled, and the next epoch begins: there are 30 epochs, 1,200 steps in all.
#
# Overfitting, or learning by heart. A network with many weights can learn what is special about
# each training image, such as a spot or a shaky line, and that does not help with new images. Then
# it gets better and better on the training images, but not on others. The validation images show
# it, as the network never learns from them: in accuracy_loss_curves.png, the training loss then
# still falls, while the validation loss no longer does, or rises. outputs/benchmark/overfitting.png
# is an example, made with the flags below. (In the default run overfitting is slight: after 30
# epochs the losses are 0.006 and 0.02.) What helps: more images, or the same ones moved a little
# each time (SHIFT, MIRROR), dropout (chapter 4), a smaller network, fewer epochs.
# Try: --validation-split 0.9 --shift 0 --dropout 0. Of 1,438 images only 144 are left to learn
# from. How far apart are the two curves now? Then --shift 1: is the gap smaller?


# The next two functions only draw one_filter.png. The lesson continues with chapter 4.
def draw_one_filter(folder):
    """Draw how one filter makes a map of an image, and how its weights are learned, with numbers.

    It is always the same digit, whatever DATASET is, so that the text above can refer to it.
    """
    image = np.round(load_digits().images[4] * 9 / 16)  # (8, 8), whole numbers from 0 to 9
    patches = np.lib.stride_tricks.sliding_window_view(image, (3, 3)).reshape(-1, 9)  # (36, 9)
    chosen = np.array([[-1, 0, 1]] * 3)  # dark on the left, bright on the right
    sums = patches @ chosen.ravel()  # (36,)
    history = learn_one_filter(patches, sums, np.random.default_rng(0).normal(size=9))

    figure = plt.figure(figsize=(13, 8.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[4.6, 3.2])
    upper.suptitle("How a filter works: it is laid on each 3x3 patch of the image in turn. Each "
                   "pixel is multiplied by the weight on it, and the nine products are added up.\n"
                   "These nine weights were chosen by hand: they give a large sum where the "
                   "image is darker on the left and brighter on the right.", fontsize=11)
    axes = upper.subplots(1, 4, width_ratios=[8, 3, 6, 6])
    draw_numbers(axes[0], image, "The image (0: dark, 9: bright)", 0, 9, colours="gray")
    draw_numbers(axes[1], chosen, "The filter: 9 weights", -1, 1)
    draw_numbers(axes[2], sums.reshape(6, 6), "Its map: a sum for each of the 6x6 patches\n"
                 "framed: 4 + 9 + 8 - 0 - 0 - 0 = 21", -24, 24)
    draw_numbers(axes[3], sums.reshape(6, 6).clip(0), "The map after ReLU:\nsums below 0 become 0",
                 -24, 24)
    row, column = np.unravel_index(sums.argmax(), (6, 6))
    for axis, side in zip(axes[[0, 2, 3]], [3, 1, 1]):
        axis.add_patch(plt.Rectangle((column, row), side, side, fill=False, color="C2", lw=4))

    lower.suptitle("How a filter is learned: nine random weights are corrected a little in each "
                   "step, so that their 36 sums come nearer to the map before ReLU.\nThe learner "
                   "is given the image and these 36 sums, never the filter.", fontsize=11)
    axes = lower.subplots(1, 6, width_ratios=[3, 3, 3, 3, 3, 5])
    for axis, step in zip(axes, [0, 1, 3, 10, 100]):
        weights, loss = history[step]
        draw_numbers(axis, weights.reshape(3, 3), f"steps: {step}\nloss: {loss:.3g}", -1, 1,
                     form=".1f")
    axes[5].semilogy([loss for _, loss in history])
    axes[5].yaxis.set_major_formatter("{x:g}")
    axes[5].set(xlabel="steps", ylabel="loss (logarithmic scale)",
                title="loss: the mean of\n(sum - wanted sum) squared")
    lower.supxlabel("In a real network nobody supplies this map: there is only the label of the "
                    "image, and all filters of all layers are corrected at once.", fontsize=11)
    figure.savefig(folder / "one_filter.png", dpi=120)


def draw_numbers(axis, numbers, title, lowest, highest, colours="PuOr_r", form=".0f"):
    """Draw a table of numbers. PuOr_r: 0 is white, above it is orange, below it is purple."""
    # (Seaborn's heatmap draws the whole figure anew for each table: nine of them take 2 seconds.)
    table = axis.pcolormesh(numbers, cmap=colours, vmin=lowest, vmax=highest, edgecolor="grey",
                            linewidth=0.5, clip_on=False)
    for (row, column), value in np.ndenumerate(numbers):
        red, green, blue, _ = table.to_rgba(value)
        is_dark = 0.2 * red + 0.7 * green + 0.1 * blue < 0.4  # green looks brightest
        axis.text(column + 0.5, row + 0.5, format(value, form), ha="center", va="center",
                  color="white" if is_dark else "black")
    axis.invert_yaxis()  # row 0 at the top
    axis.set(xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, fontsize=11)


# %% 4. Model: layer by layer; after each one comes the shape of its output
# Some layers are tricks that a plain network does without. A table at the end of chapter 5 names
# them, and shows what each one adds. On a first reading, look for the plain layers: Conv2D (a
# convolution), MaxPooling2D, ReLU, Flatten, Dense. keras.Sequential is a list of layers, each of
# which gets what the one before it returns.
# Try: --filters 4, then --filters 128. How many weights ("params") does the printed table show, and
# how many test images are recognized? --dense-units 0: which layers change?
def build_cnn(x_train, num_classes, settings):
    """Return a convolutional neural network that takes raw pixels and answers with probabilities.

    In: (n, height, width, channels), 0 to 255. Out: (n, num_classes) float32, each row adds up to
    1. The shapes are those of digits, for one image: the first axis, n, is left out.
    (model.summary() prints those of your run, with None for n. Its "Param #" counts weights: the
    convolution after whitening has 4,608, 9 for each of 64 filters and 8 maps. Batch normalization
    has 256: scale, offset, and two averages, for each of 64 maps.)
    """
    model = keras.Sequential(name="cnn")
    model.add(keras.Input(x_train.shape[1:]))  # (8, 8, 1)
    for layer in augmentation_layers(x_train.shape[1:], settings):
        model.add(layer)  # (8, 8, 1), only in training
    # (pixel - mean) / standard deviation, for each channel: so one rate suits dark and bright sets
    # of images. As a layer of the model it can't be forgotten: the model takes raw pixels.
    normalization = layers.Normalization()
    normalization.adapt(every_kth(x_train, 10_000_000))  # measures mean and standard deviation
    model.add(normalization)  # (8, 8, 1)
    if settings.WHITENING:
        some_images = normalization(every_kth(x_train, 3_000_000))  # layers work like functions
        model.add(whitening_layer(some_images))  # (7, 7, 8): 2x2 fits at 7 places in 8
    for place, filters in enumerate(settings.FILTERS, start=1):
        add_block(model, filters, f"block_{place}", settings)  # (3, 3, 64)
    # On cifar10: (31, 31, 24), and after the three blocks (15, 15, 32), (7, 7, 96), (3, 3, 192).
    # Now the maps become one row of numbers. A hidden dense layer (hidden: not the last one) has a
    # weight for each map and each place: for a digit, the place where a stroke was found says a
    # lot. Without it, only the largest number of each map is kept, wherever it occurs (global
    # pooling): on cifar10, that is enough.
    if settings.DENSE_UNITS == 0:
        whole_map = model.output_shape[1:3]  # cifar10: (3, 3)
        model.add(layers.MaxPooling2D(whole_map))  # cifar10: (1, 1, 192)
    model.add(layers.Flatten())  # (576,): 3 * 3 * 64; cifar10: (192,)
    if settings.DENSE_UNITS > 0:
        model.add(layers.Dense(settings.DENSE_UNITS, activation="relu"))  # (128,)
    # Dropout sets a share of the numbers to 0 in each step, at random, so that the answer can't
    # rely on any single one. The others are made larger to make up for it. During a test nothing is
    # left out.
    model.add(layers.Dropout(settings.DROPOUT))  # (128,), only in training
    model.add(layers.Dense(num_classes, activation="softmax"))  # (10,)
    if settings.IDENTITY_START:
        start_as_identity(model)
    return model


def augmentation_layers(image_shape, settings):
    """Return the layers that move and mirror the training images at random.

    This is called augmentation: the network gets each image in several forms (with SHIFT 1 there
    are nine), and learns it by heart less easily. Keras skips these layers when the network is
    tested or asked. A mirrored 2 is not a 2, so MIRROR is off for digits.
    """
    height, width, _ = image_shape
    if settings.SHIFT >= min(height, width):
        stop(f"--shift {settings.SHIFT} is too much: the images have {height}x{width} pixels.")
    result = []
    if settings.SHIFT > 0:
        # As a share of height and width; the gap is filled with the mirrored edge.
        result.append(layers.RandomTranslation(
            settings.SHIFT / height, settings.SHIFT / width, interpolation="nearest", name="shift"))
    if settings.MIRROR:
        result.append(layers.RandomFlip("horizontal", name="mirror"))
    return result


def every_kth(images, most_values):
    """Return every k-th image, so that the sample has no more than about most_values values."""
    k = math.ceil(images.size / most_values)
    return images[::k]


def whitening_layer(images):
    """Return a convolution whose filters are computed from the normalized images, not learned.

    On a first reading, read the why and skip the how. Neighbouring pixels are alike (in photos,
    nearly equal), so much of what a first layer sees is repetition. Whitening turns each patch of
    2x2 pixels into numbers that are uncorrelated (none tends to grow with another), with a standard
    deviation of about 1 (before ReLU). With inputs of equal spread, one rate suits all weights
    (Page, 2019; Jordan, 2024). Each filter occurs twice, once negated, because ReLU removes what is
    below 0.
    """
    channels = images.shape[-1]
    patches = keras.ops.image.extract_patches(images, size=2, strides=1)  # (..., 4 * channels)
    patches = np.reshape(patches, (-1, 4 * channels))  # (how many patches, 4 * channels)
    # The covariance says how any two values of a patch vary together. Its eigenvectors, the columns
    # of `directions`, are the mixtures of these values that don't vary together (principal
    # components). Its eigenvalues, `variances`, say how much each mixture varies.
    covariance = np.cov(patches, rowvar=False)  # (4 * channels, 4 * channels)
    variances, directions = np.linalg.eigh(covariance)
    # Each mixture is divided by its standard deviation (5e-4: so that nothing is divided by 0).
    filters = directions / np.sqrt(variances + 5e-4)  # (4 * channels, 4 * channels)
    # The values of a patch are in the order row, column, channel, as a filter's weights are.
    filters = filters.reshape(2, 2, channels, 4 * channels)
    filters = np.concatenate([filters, -filters], axis=-1)  # (2, 2, channels, 8 * channels)
    layer = layers.Conv2D(8 * channels, 2, use_bias=False, activation="relu", name="whitening")
    layer.build(images.shape)
    layer.set_weights([filters])
    layer.trainable = False  # so the training leaves its weights as they are
    return layer


def add_block(model, filters, name, settings):
    """Add layers that turn maps (height, width, any) into (height // 2, width // 2, filters).

    Pooling comes right after the block's first convolution, so that the second one works on a
    quarter of the places (Jordan, 2024): on cifar10, the network needs only half as many
    multiplications.
    Batch normalization: whenever the weights of a convolution change, so does the spread of its
    sums, and the next layers would have to adapt. So each map has its mean subtracted, and is
    divided by its standard deviation, both taken over the images of the batch and all places; then
    a learned scale (gamma) and offset (beta) give it the spread that the next layer needs. That
    allows larger steps (Ioffe and Szegedy, 2015; why it does is still debated). During a test an
    answer must not depend on the other images, so there the layer uses averages over the last
    batches of the training. (Keras' momentum=0.6 says how slowly these averages move: at each step,
    60 % of the old average is kept.)
    """
    height, width = model.output_shape[1:3]
    if min(height, width) < 4:  # 3x3 becomes 1x1, where eight of nine weights would see nothing
        stop(f"{name} (--filters {settings.FILTERS}) gets maps of {height}x{width} pixels. A block "
             "needs 4x4 or more, and halves the maps: give fewer blocks (numbers in --filters), or "
             "larger images.")
    with_bias = not settings.BATCH_NORMALIZATION  # batch normalization has its own offset
    # padding="same": a border of zeros around the input, so that the maps keep its size.
    model.add(layers.Conv2D(filters, 3, padding="same", use_bias=with_bias))  # (7, 7, 64)
    model.add(layers.MaxPooling2D())  # (3, 3, 64): a last odd row or column is dropped
    if settings.BATCH_NORMALIZATION:
        model.add(layers.BatchNormalization(momentum=0.6))  # (3, 3, 64)
    model.add(layers.ReLU())  # (3, 3, 64)
    model.add(layers.Conv2D(filters, 3, padding="same", use_bias=with_bias))  # (3, 3, 64)
    if settings.BATCH_NORMALIZATION:
        model.add(layers.BatchNormalization(momentum=0.6))  # (3, 3, 64)
    model.add(layers.ReLU(name=name))  # (3, 3, 64); chapter 7 finds the block's maps by this name


def start_as_identity(model):
    """Make the first filters of each convolution copy one input map each, not start at random.

    The network then begins by passing its input on through the blocks (apart from pooling, batch
    normalization and ReLU, and if there are enough filters), and learns what to change (Jordan,
    2024). Filters beyond the number of input maps stay random: on digits, 56 of 64 in the
    convolution after whitening, as only 8 maps come in.
    """
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D) and layer.name != "whitening":
            weights = layer.kernel.numpy()  # Keras calls them kernel: (3, 3, maps in, filters)
            maps_in, filters = weights.shape[2:]
            for i in range(min(maps_in, filters)):
                weights[:, :, :, i] = 0
                weights[1, 1, i, i] = 1  # the middle of the 3x3 filter, from map i to map i
            layer.kernel.assign(weights)


# %% 5. Training: the four lines of chapter 3 for a whole network, again and again
# Try: --learning-rate 0.04, then 0.0004: how does the loss fall in the first epochs, and where is
# it after the last one? --schedule constant: what do the last ten epochs look like now?
def show_one_step(model, x_train, y_train, rate=0.001):
    """Do one training step by hand, print what it does, and undo it.

    It is done on up to 128 images, spread over the classes.
    """
    some = spread_over_classes(y_train, 128)
    labels = keras.utils.to_categorical(y_train[some], model.output_shape[1])  # see batches()
    start = model.get_weights()
    with tf.GradientTape() as tape:  # records what is computed, so that gradients can be found
        # training=False: images are not moved, and nothing is dropped, so the losses compare
        probabilities = model(x_train[some], training=False)  # 1. forward: (128, 10)
        losses = keras.losses.categorical_crossentropy(labels, probabilities)  # (128,)
        loss = keras.ops.mean(losses)  # 2. loss: one number
    gradients = tape.gradient(loss, model.trainable_weights)  # 3. gradient: one for each weight
    for weights, gradient in zip(model.trainable_weights, gradients):
        weights.assign_sub(rate * gradient)  # 4. update: a small step against the gradient
    probabilities = model(x_train[some], training=False)
    new_loss = keras.ops.mean(keras.losses.categorical_crossentropy(labels, probabilities))

    last_weights = model.trainable_weights[-2].numpy()  # (128, 10); [-1] holds the biases
    last_gradient = gradients[-2].numpy()
    place = np.unravel_index(np.abs(last_gradient).argmax(), last_gradient.shape)
    new = last_weights[place]
    slope = last_gradient[place]
    print(f"One step by hand, with {len(some)} images and a rate of {rate}. One of the weights: "
          f"{new + rate * slope:.6f} - {rate} * {slope:.6f} = {new:.6f}. All together: the loss "
          f"of these images was {loss:.3f} and is now {new_loss:.3f}.")
    model.set_weights(start)


# model.fit() below takes such steps, with a new batch each time, and differs in three ways: the
# optimizer turns the gradient into a better step, the learning rate rises and falls, and images are
# moved, numbers dropped and batches normalized as chapter 4 says.
def train(model, x_train, y_train, x_val, y_val, folder, settings, first_epoch=0):
    """Train the model; return its history, a table (pandas DataFrame) with a row for each epoch.

    x_train, x_val: images or, in chapter 8, a row of features for each image. The weights are
    kept as they are at the end (with the cosine schedule, the last few epochs hardly differ). If
    the best of many epochs were chosen by the validation images, it would look better on these than
    on new ones.
    """
    num_classes = model.output_shape[1]
    training = batches(x_train, y_train, num_classes, settings, shuffled=True)
    validation = batches(x_val, y_val, num_classes, settings)
    rate = learning_rate_schedule((settings.EPOCHS - first_epoch) * len(training), settings)
    # compile: with which optimizer and which loss the model is trained, and what is measured
    model.compile(make_optimizer(rate, settings), "categorical_crossentropy", metrics=["accuracy"])
    # first_epoch or, with --resume, the first one that was not finished (chapter 11)
    start = restore_weights(model, folder, settings, first_epoch, len(training))
    try:  # the batches are shuffled already; verbose: 1 a moving bar, 2 a line for each epoch
        model.fit(training, validation_data=validation, initial_epoch=start,
                  epochs=settings.EPOCHS, shuffle=False, verbose=1 if sys.stdout.isatty() else 2,
                  callbacks=after_each_epoch(model, folder, settings, first_epoch))
    except KeyboardInterrupt:
        print("\nCtrl-C ends the training. If an epoch was finished, the network is tested and "
              "saved as it is now, with its pictures.")
    return read_history(folder)


def batches(images, labels, num_classes, settings, shuffled=False):
    """Return a tf.data.Dataset of batches: images, and one-hot labels.

    One-hot: with four classes, 0 to 3, the label 2 becomes 0, 0, 1, 0: a probability for each
    class. Shuffled: the order is new in each epoch, and a last batch that is not full is left out,
    as the mean of a few images would spoil batch normalization.
    """
    one_hot = keras.utils.to_categorical(labels, num_classes)  # (n, num_classes), 0.0 or 1.0
    dataset = tf.data.Dataset.from_tensor_slices((images, one_hot))
    if shuffled:
        dataset = dataset.shuffle(len(images), seed=settings.SEED)
    dataset = dataset.batch(min(settings.BATCH_SIZE, len(images)), drop_remainder=shuffled)
    options = tf.data.Options()
    options.autotune.enabled = False  # tuning its speed can delay an epoch's end
    return dataset.with_options(options)


def learning_rate_schedule(steps, settings):
    """Return the learning rate, which makes steps large or small: a number, or a function of steps.

    "cosine": it rises over the first fifth of the steps, as large steps right away could throw off
    a network whose weights are still random (warm-up; Goyal et al., 2017). LEARNING_RATE is the
    peak. Then it falls to 0 along half a cosine wave, so that the weights come to rest (Loshchilov
    and Hutter, 2017). The curve is stretched over all epochs, so a run of 5 epochs is not like the
    first 5 of 30.
    """
    highest = settings.LEARNING_RATE
    if settings.SCHEDULE == "constant":
        return highest
    warmup_steps = max(1, steps // 5)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=highest / warmup_steps, warmup_target=highest,
        warmup_steps=warmup_steps, decay_steps=max(1, steps - warmup_steps))


def make_optimizer(learning_rate, settings):
    """Return the rule that turns gradients into steps: Adam (Kingma and Ba, 2015), or SGD.

    SGD (stochastic gradient descent) is step 4 of chapter 3: weight - rate * gradient. Here it has
    momentum: instead of the gradient, it uses a sum of recent gradients, in which older ones count
    less and less, so that the randomness of single batches averages out. (nesterov: a variant.)
    Adam does the same, and divides by the usual size of each weight's gradients. Take one weight
    with gradients around 100, and one with gradients around 0.01: with a rate of 0.004, plain SGD
    moves them by 0.4 and 0.00004; Adam moves both alike, usually by 0.004 or less. So Adam needs
    different rates from SGD.
    Weight decay: in each step each weight also loses a small share, WEIGHT_DECAY * rate: 0.25 *
    0.004 = 0.1 %. Without it the weights grow, and the larger they are, the less a step of the same
    size changes what they do. (It is not part of the loss: Loshchilov and Hutter, 2019.)
    """
    if settings.OPTIMIZER == "adam":
        optimizer = keras.optimizers.Adam(learning_rate, weight_decay=settings.WEIGHT_DECAY)
    else:
        optimizer = keras.optimizers.SGD(
            learning_rate, momentum=0.9, nesterov=True, weight_decay=settings.WEIGHT_DECAY)
    # No decay of offsets (bias, beta) and scales (gamma): they are few, and set the mean and the
    # spread of a map.
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    return optimizer


# What each trick adds: validation images of cifar10 that are recognized, after 3 epochs with 16, 32
# and 64 filters; the mean of three seeds. Each row adds one trick to those above it. Where the
# results of a row overlap with those of the row above, a "?" says that the gain may be luck.
#     plain network (Adam, constant rate of 0.001)    63.9 %
#     + batch normalization                           69.2 %   +5.3
#     + larger steps (a rate of 0.004)                71.0 %   +1.8
#     + a rate that rises and falls                   73.5 %   +2.4
#     + whitening                                     76.0 %   +2.6
#     + convolutions that start as identity           76.5 %   +0.5 ?
#     + augmentation                                  77.2 %   +0.7 ?
#     + weight decay                                  78.3 %   +1.1 ?
#     + global pooling in place of the dense layer    78.0 %   -0.3 ?
# (Measured with: python tests/experiments.py staircase. Gains were computed before rounding. The
# last trick gains nothing here, but saves many weights.)


# %% 6. Test: how good is it on images that it has never seen?
# Try: --seed 1, then 2. How far do accuracy and loss move, if nothing else is changed? A setting
# that gains less than that may have gained nothing.
def predict(model, images, verbose=0):
    """Return what the model says about images (n, height, width, channels), raw pixels."""
    batch_size = 256 if model.name == "cnn" else 32  # a pretrained network makes far larger maps
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(batch_size)
    return model.predict(dataset, verbose=verbose)  # (n, num_classes) float32, probabilities


def evaluate(model, x_val, y_val, x_test, y_test, class_names):
    """Test the model; return probabilities (test images, classes), and a dict of results."""
    val_right = predict(model, x_val).argmax(axis=1) == y_val  # (n,) bool
    probabilities = predict(model, x_test)
    predicted = probabilities.argmax(axis=1)
    right = predicted == y_test
    # "Sparse" means that it takes labels as they are, instead of one-hot ones.
    losses = keras.losses.sparse_categorical_crossentropy(y_test, probabilities)  # (n,)
    classes = range(len(class_names))
    return probabilities, {
        "validation_accuracy": float(val_right.mean()),
        "validation_images": len(y_val),
        "test_accuracy": float(right.mean()),
        "test_accuracy_interval": interval_of(right.sum(), len(right)),
        "test_images": len(y_test),
        "test_loss": float(np.mean(losses)),
        "mean_confidence": float(probabilities.max(axis=1).mean()),
        "parameters": model.count_params(),
        "classes": classification_report(y_test, predicted, labels=classes, zero_division=0,
                                         target_names=class_names, output_dict=True),
        "confusion_matrix": confusion_matrix(y_test, predicted, labels=classes).tolist(),
    }


def interval_of(right, count):
    """Return the 95 % interval (low, high) of an accuracy of right / count (Wilson, 1927).

    It shows how much luck in the choice of the images can matter: about 95 of 100 such intervals
    hold the accuracy that one would find with infinitely many images of the same kind.
    """
    interval = stats.binomtest(int(right), int(count)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def report(results, probabilities, y_test, class_names, folder):
    """Print accuracy, loss and the scores of each class; write classification_report.txt.

    Precision: of the images called a cat, the share that are cats. Recall: of the cats, the share
    that are called a cat. F1 score: one value for both, 2 x precision x recall / (precision +
    recall). Support: how many test images the class has. Macro avg: the mean over the classes;
    weighted avg: classes with more images count more.
    """
    low, high = results["test_accuracy_interval"]
    print(f"\nTest accuracy {results['test_accuracy']:.2%} on {len(y_test)} images "
          f"(95 % interval {low:.2%} to {high:.2%}), loss {results['test_loss']:.4f}")
    confidence = results["mean_confidence"]
    is_far = abs(confidence - results["test_accuracy"]) > 0.05 and not low <= confidence <= high
    print(f"On average, the network was {confidence:.1%} sure; "
          f"{results['test_accuracy']:.1%} of its answers were right."
          f"{' These are far apart: do not trust its percentages.' if is_far else ''}")
    scores = classification_report(y_test, probabilities.argmax(axis=1), digits=4, zero_division=0,
                                   labels=range(len(class_names)), target_names=class_names)
    print(f"\n{scores}")
    (folder / "classification_report.txt").write_text(scores, encoding="utf-8")


# %% 7. Pictures of the results: look at them before you read on; each says what it shows
# Most of this chapter is drawing code: on a first reading, read its docstrings, and go on with
# chapter 8. About the curves: of 144 validation images one is 0.7 %, so small zigzags mean nothing.
def draw_curves(history, title, folder):
    """Draw accuracy, loss and learning rate over the epochs; history: as train() returns it."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 5), layout="constrained")
    figure.suptitle(
        f"{title}: how the training went\nTraining images: the mean over the epoch, while the "
        "network changes and its task is made harder (SHIFT, MIRROR, DROPOUT). Validation images: "
        "at the epoch's end.\nWhere the training loss still falls and the validation loss does not,"
        " the network learns images by heart (overfitting). It is kept as it is at the end.",
        fontsize=11)
    epochs = history["epoch"] + 1
    best = history["val_accuracy"].idxmax()  # the first, where several are equal
    for axis, name in zip(axes, ["accuracy", "loss"]):
        axis.plot(epochs, history[name], "o-", label="training images")
        axis.plot(epochs, history["val_" + name], "s--", label="validation images")
    axes[0].plot(epochs[best], history["val_accuracy"][best], "k*", markersize=14,
                 label=f"best validation accuracy: epoch {epochs[best]}")
    axes[1].set_yscale("log")  # from 0.1 to 1 is as far as from 1 to 10: small losses show, too
    axes[1].yaxis.set_major_locator(plt.LogLocator(subs=[1, 2, 5]))
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[1].yaxis.set_minor_formatter("")
    axes[0].legend()
    axes[1].legend()
    axes[2].plot(epochs, history["learning_rate"], "D-", color="C2")
    titles = ["Accuracy: share of right answers", "Loss: how wrong it is (logarithmic scale)",
              "Learning rate, at the end of the epoch"]
    for axis, text in zip(axes, titles):
        axis.set_title(text, fontsize=11)
        axis.set(xlabel="epoch (one pass over the training images)", xlim=(0.5, len(epochs) + 0.5))
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.savefig(folder / "accuracy_loss_curves.png", dpi=120)


def draw_confusion_matrix(counts, names, title, folder):
    """Draw which class is mistaken for which; counts: (true class, predicted class) int."""
    counts = np.array(counts)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)  # of each row; clip: no 0 / 0
    mistakes = counts - np.diag(counts.diagonal())
    true, predicted = np.unravel_index(mistakes.argmax(), mistakes.shape)
    worst = (f"Commonest mistake: {names[true]} mistaken for {names[predicted]}, {mistakes.max()} "
             f"of {counts[true].sum():,} times").replace("\n", " ")
    side = np.clip(3 + 0.6 * len(names), 6.5, 22)  # inches
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    sns.heatmap(shares, mask=counts == 0, fmt="d", vmin=0, vmax=1, cmap="Blues", linewidths=0.5,
                linecolor="lightgrey", xticklabels=names, yticklabels=names,
                annot=counts if len(names) <= 30 else None,  # with more, numbers do not fit
                cbar_kws={"label": "share of the true class (of its row)", "format": "{x:.0%}"})
    axis.grid(visible=False)
    axis.tick_params(labelsize=np.clip(1000 / len(names), 4, 11))
    axis.tick_params("y", rotation=0)
    if max(len(name) for name in names) > 3:
        plt.setp(axis.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    axis.set(xlabel="predicted class (what the network says)", ylabel="true class (what it is)")
    axis.set_title(f"{title}: which class is mistaken for which?\nOn the diagonal: the right "
                   f"answers, {np.trace(counts) / counts.sum():.2%} of {counts.sum():,} test images"
                   f"\n{worst if mistakes.any() else 'No mistake'}")
    figure.savefig(folder / "confusion_matrix.png", dpi=120)


def draw_predictions(x, y, probabilities, names, title, folder):
    """Draw 30 test images with the answers, and the wrong answers of which the network was surest.

    x: (n, height, width, channels) uint8. y: (n,) int. probabilities: (n, classes) float32.
    """
    chosen = choose_samples(y, probabilities)
    draw_answers(x[chosen], y[chosen], probabilities[chosen], names,
                 f"{title}: test images, with mistakes at the end",
                 folder / "sample_predictions.png")

    wrong = np.flatnonzero(probabilities.argmax(axis=1) != y)
    surest = wrong[np.argsort(-probabilities[wrong].max(axis=1))[:30]]  # argsort: smallest first
    draw_answers(x[surest], y[surest], probabilities[surest], names,
                 f"{title}: wrong answers, {len(wrong):,} of {len(y):,} test images, the surest "
                 "first. Is it always the network that is wrong?",
                 folder / "confident_mistakes.png")


def choose_samples(labels, probabilities):
    """Return the indices of 30 test images to show, up to 10 mistakes at the end."""
    order = spread_over_classes(labels, len(labels))  # one of each class in turn
    is_right = probabilities.argmax(axis=1)[order] == labels[order]
    wrong = order[~is_right][:10]
    return np.concatenate([order[is_right][:30 - len(wrong)], wrong])


def draw_answers(images, labels, probabilities, names, headline, path, heats=()):
    """Draw test images, six in a row, with what the network says; heats: see occlusion_map()."""
    figure = plt.figure(figsize=(12, 2.4 * math.ceil(len(images) / 6) + 1.4), layout="constrained")
    figure.suptitle(
        f"{headline}\nAbove each: what the network says, how sure it is, and the "
        "true class. ✓ blue frame: right. ✗ thick orange frame: wrong.", fontsize=11)
    predicted = probabilities.argmax(axis=1)
    texts = []
    for label, answer, row in zip(labels, predicted, probabilities):
        mark = "✓" if answer == label else "✗"
        percent = math.floor(100 * row.max())  # rounded down: only a probability of 1 is 100%
        texts.append(f"{mark} {names[answer]}, {percent}%\ntrue: {names[label]}")
    axes = draw_grid(figure, images, texts, columns=6)
    for axis, is_right in zip(axes, predicted == labels):
        axis.spines[:].set(color="C0" if is_right else "C3", linewidth=2 if is_right else 5)
    for axis, heat in zip(axes, heats):
        opacity = np.clip(heat / max(0.1, np.max(heats)), 0, 0.9)  # no fall: transparent
        axis.imshow(np.full((*heat.shape, 3), (255, 215, 0)), alpha=opacity)  # yellow
    figure.savefig(path, dpi=120)


def draw_where_it_looks(model, x, y, probabilities, names, title, folder):
    """Draw test images, and how far the probability of the answer falls if a part is covered."""
    chosen = choose_samples(y, probabilities)
    heats = [occlusion_map(model, x[i], probabilities[i].argmax()) for i in chosen]
    strongest = 100 * max(0.1, np.max(heats))
    headline = (
        f"{title}: where it looks\nA square in the image's mean colour covers one part after "
        "another. Yellow, on the darkened image: with this part covered,\nthe network is much less "
        f"sure of its answer (strongest yellow: by {strongest:.0f} percentage points). No yellow: "
        "no part alone decides.")
    grey = (0.6 * x[chosen].mean(axis=3, keepdims=True)).astype("uint8")  # so yellow shows on it
    draw_answers(grey, y[chosen], probabilities[chosen], names, headline,
                 folder / "where_it_looks.png", heats)


def occlusion_map(model, image, class_index):
    """Return how far the probability of a class falls when a square covers each part of an image.

    Where it falls a lot, the answer depends on that part (occlusion: Zeiler and Fergus, 2014).
    image: (height, width, channels) uint8. Returns (height, width) float, below 0 where it rises.
    """
    height, width, _ = image.shape
    square = max(2, min(height, width) // 4)
    stride = square // 2
    masks = [np.zeros((height, width), bool)]  # True: covered; in the first one, nothing is
    # The square may stick out, so that the borders are covered as well.
    for top in range(stride - square, height, stride):  # digits: -1, 0, 1 ...; cifar10: -4, 0, 4
        for left in range(stride - square, width, stride):
            mask = np.zeros((height, width), bool)
            mask[max(top, 0):top + square, max(left, 0):left + square] = True
            masks.append(mask)
    mean_colour = image.mean(axis=(0, 1)).astype("uint8")
    images = np.where(np.expand_dims(masks, 3), mean_colour, image)  # (masks, height, ...)
    probabilities = predict(model, images)  # (masks, classes)
    falls = probabilities[0, class_index] - probabilities[:, class_index]  # (masks,)
    # For each pixel, the mean fall of all squares that covered it (tensordot adds up fall x mask).
    return np.tensordot(falls, masks, axes=1) / np.sum(masks, axis=0)


def draw_learned_features(model, x_test, y_test, probabilities, names, title, folder):
    """Draw the first filters, the maps of one image, and the parts with the strongest responses.

    Filters after the first layer can't be shown as pictures: they work on maps, not on colours. But
    one can find the images to which they respond (Zeiler and Fergus, 2014). Shapes: see
    draw_predictions().
    """
    blocks = [layer for layer in model.layers if layer.name.startswith("block_")]
    if not blocks:
        return warn("no learned_features.png: no layer of the network is called block_1, ...")
    is_right = probabilities.argmax(axis=1) == y_test
    surest = np.argmax(probabilities.max(axis=1) * is_right)  # of the right answers
    images = x_test[[surest, *spread_over_classes(y_test, 500)]]
    figure = plt.figure(figsize=(12, 2 + 4.7 * len(blocks)), layout="constrained")
    figure.suptitle(f"{title}: what the filters respond to, from the first layer to the last block")
    top, *parts = figure.subfigures(1 + len(blocks), 1, height_ratios=[1.7] + [4.7] * len(blocks))

    first = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D))
    filters = np.moveaxis(first.get_weights()[0], 3, 0)[:12]  # (filters, height, width, channels)
    largest = np.abs(filters).max(axis=(1, 2, 3), keepdims=True).clip(1e-9)
    patterns = (127.5 + 127.5 * filters / largest).astype("uint8")
    top.suptitle(f"A test image of {names[y_test[surest]]}, and filters of the layer {first.name}, "
                 "as the patterns they respond to most\n(mid-grey: weight 0; the filters "
                 "of whitening are not learned, and each occurs twice, once negated)", fontsize=11)
    texts = ["image"] + [f"filter {k}" for k in range(len(patterns))]
    draw_grid(top, [images[0], *patterns], texts, columns=13)

    for part, block in zip(parts, blocks):
        up_to_block = keras.Model(model.inputs[0], block.output)  # a network of the layers up to it
        maps = up_to_block.predict(images, verbose=0)  # (n, rows, columns, filters)
        strongest = np.argsort(-maps[0].max(axis=(0, 1)))[:6]  # the six strongest on image 0
        # A part is roughly what one place of the map sees through all layers before it: on cifar10,
        # 9, 23 and 51 pixels in blocks 1, 2 and 3, so about five times the place itself. On digits,
        # it is the whole image.
        side = min(5 * images.shape[1] // maps.shape[1], *images.shape[1:3])
        tiles = [255 * maps[0, ..., k] / maps[0].max().clip(1e-9) for k in strongest]
        tiles += [strongest_parts(maps[1:, ..., k], images[1:], side) for k in strongest]
        texts = [f"filter {k}" for k in strongest] + ["responds most to"] * len(strongest)
        part.suptitle(f"{block.name}: filters that respond most to the image at the top. Above: "
                      "their maps of it (bright: strong response).\nBelow: the nine parts of test "
                      f"images, about {side} x {side} pixels, to which each responds most.",
                      fontsize=11)
        draw_grid(part, tiles, texts, columns=len(strongest))
    figure.savefig(folder / "learned_features.png", dpi=120)


def strongest_parts(maps, images, side):
    """Return, in one picture, the parts of nine images to which a filter responds most.

    Each part has side x side pixels.
    maps: (n, rows, columns), of one filter. images: (n, height, width, channels) uint8.
    """
    size = np.array(images.shape[1:3])
    strongest = np.argsort(-maps.max(axis=(1, 2)))
    parts = []
    for i in np.resize(strongest, 9):  # the first nine; if there are fewer, some are repeated
        place = np.unravel_index(maps[i].argmax(), maps[i].shape)  # row and column in the map
        middle = (np.array(place) + 0.5) * size / maps[i].shape  # in pixels
        top, left = np.clip(middle - side / 2, 0, size - side).astype(int)  # inside the image
        parts.append(images[i, top:top + side, left:left + side])
    gap = max(1, side // 12)
    parts = np.pad(parts, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=128)
    rows_of_three = [np.hstack(parts[start:start + 3]) for start in (0, 3, 6)]
    return np.vstack(rows_of_three)


# %% 8. Transfer learning: a network that knows a million pictures; not for MODEL "cnn"
# ImageNet, as used here, is 1.3 million photos of 1000 kinds of things. The edges, textures and
# parts that a network has learned to recognize there are useful for other photos, too. So the base
# (all layers but the last; in vgg16, all but the last three) is kept as it is (frozen), and only a
# new last layer, the head, is trained. For that, a few pictures will do: with 20 of each class of
# cifar10, mobilenet_v2 got 72 % of 2,000 test images right, and the CNN of chapter 4 got 36 % (one
# run each: python tests/experiments.py pictures; this mobilenet_v2 had also learned from extra
# photos of dogs). With FINE_TUNE, some more layers learn at the end.
PRETRAINED = {  # Sandler et al., 2018; Simonyan and Zisserman, 2014; He et al., 2015
    "mobilenet_v2": (keras.applications.mobilenet_v2, "MobileNetV2"),
    "vgg16": (keras.applications.vgg16, "VGG16"),
    "resnet50": (keras.applications.resnet50, "ResNet50"),
}


def build_pretrained(image_shape, num_classes, settings, weights="imagenet"):
    """Return a network that knows ImageNet, with a new head. It takes raw pixels, as the CNN does.

    The shapes are those of CIFAR-10 and MobileNetV2. weights: "imagenet", or None (random).
    """
    module, name = PRETRAINED[settings.MODEL]
    size = settings.IMAGE_SIZE
    if size < 32:
        stop(f"--image-size {size} is too small for {settings.MODEL}: it takes 32 or more.")
    base = from_keras(getattr(module, name), f"models/{settings.MODEL.partition('_')[0]}*.h5",
                      weights=weights, include_top=False, input_shape=(size, size, 3))
    base.trainable = False  # frozen. (Its top, the last layers, was left out.)
    # Another way to build: a layer that is called on x gives what comes out of it, and
    # keras.Model(start, end) makes a network of all that lies between.
    pixels = keras.Input(image_shape)  # (32, 32, 3)
    x = pixels
    for layer in augmentation_layers(image_shape, settings):
        x = layer(x)  # (32, 32, 3), only in fine-tuning
    x = layers.Resizing(size, size)(x)  # (96, 96, 3)
    if image_shape[2] == 1:
        x = layers.Concatenate()([x, x, x])  # grey becomes three equal colours
    x = module.preprocess_input(x)  # (96, 96, 3), scaled like the pixels it learned from
    # training=False: batch normalization uses its averages from ImageNet, as in a test.
    x = base(x, training=False)  # (3, 3, 1280): 1280 maps of 3x3 places
    x = layers.GlobalAveragePooling2D()(x)  # (1280,): the mean of each map
    # Mean 0 and standard deviation 1 for each picture: so one rate suits all of PRETRAINED.
    x = layers.LayerNormalization(center=False, scale=False)(x)  # (1280,): the features
    features = keras.Model(pixels, x, name="features")
    head = keras.Sequential([
        keras.Input(features.output_shape[1:]),
        layers.Dropout(settings.DROPOUT),  # (1280,), only in training
        layers.Dense(num_classes, activation="softmax"),  # (10,)
    ], name="head")
    return keras.Sequential([keras.Input(image_shape), features, head], name=settings.MODEL)


def train_pretrained(model, x_train, y_train, x_val, y_val, folder, settings):
    """Train the head, then, with FINE_TUNE, the last part of the base too; return the history."""
    features, head = model.layers  # the head is part of the model: training it changes the model
    # The frozen part makes the same features from a picture in every epoch, so each picture (and
    # each mirrored one) goes through it only once. Then the head is trained alone, on these
    # features.
    views = [x_train]
    if settings.MIRROR:
        views.append(x_train[:, :, ::-1])  # left and right swapped
    print(f"{settings.MODEL} looks at all pictures:")
    progress = 1 if sys.stdout.isatty() else 2  # a moving bar, or a line
    # float16: half of the memory
    f_train = [predict(features, view, progress).astype("float16") for view in views]
    f_val = predict(features, x_val, progress).astype("float16")  # (n, 1280)
    labels = np.tile(y_train, len(views))  # the labels, once for each view
    history = train(head, np.concatenate(f_train), labels, f_val, y_val, folder, settings)
    if settings.FINE_TUNE > 0 and len(history) >= settings.EPOCHS:  # fewer: ended by Ctrl-C
        # The last third of the base's layers learns. Batch normalization stays as it is: its
        # averages over many batches of ImageNet are better than those over a few pictures.
        # (Chollet, 2020, keeps the averages, too, but trains the scales and offsets.)
        base = next(layer for layer in features.layers if isinstance(layer, keras.Model))
        base.trainable = True  # all its layers
        for place, layer in enumerate(base.layers):
            is_early = place < len(base.layers) * 2 // 3
            if is_early or isinstance(layer, layers.BatchNormalization):
                layer.trainable = False
        # Small steps, so that little is forgotten, and no decay of weights that are good already.
        fine = argparse.Namespace(**vars(settings))  # a copy
        fine.OPTIMIZER = "adam"
        fine.LEARNING_RATE = 1e-5  # for Adam; with SGD, it would change almost nothing
        fine.WEIGHT_DECAY = 0.0
        fine.EPOCHS = settings.EPOCHS + settings.FINE_TUNE
        history = train(model, x_train, y_train, x_val, y_val, folder, fine, settings.EPOCHS)
    return history


# %% 9. Your own pictures
# The folder that the network learns from and the picture it is asked about are read by the same
# function: a network gives wrong answers to pictures prepared differently from those it learned
# from.
PARTS = {"train": "train|training", "val": "val|valid|validation", "test": "test|testing"}
SYSTEM_FILES = {"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"}  # skipped silently
MOST_GIGABYTES = 4  # of pixels in a data set; copies take several times as much
INK = 100  # in a white-on-black drawing, pixels above this value are ink


def load_own_data(settings):
    """Return the three parts of a folder or an .npz file, and the class names, as load_data() does.

    Until the end, a part also holds the names of its images, to report which occur twice.
    """
    dataset = settings.DATASET
    path = pathlib.Path(dataset)
    if path.is_dir():
        parts = read_folder(path, settings.IMAGE_SIZE, settings.OUTPUT_DIR)
    elif path.is_file() and path.suffix.lower() == ".npz":
        parts = read_npz(path)
    else:
        stop(f"--dataset {dataset} {'is not a data set' if path.exists() else 'does not exist'}: "
             f"it can be {', '.join(CLASS_NAMES)}, a folder that holds a folder of pictures for "
             "each class, or an .npz file with x_train and y_train.")
    parts = without_colour(parts, dataset)
    sizes = {part: pd.Series(labels).value_counts() for part, (_, labels, _) in parts.items()}
    sizes = pd.DataFrame(sizes).fillna(0).sort_index()  # a row for each class, a column per part
    few = list(sizes.index[sizes["train"] < 3])
    if few or len(sizes) < 2:
        stop(f"--dataset {dataset}: classes found: {len(sizes)}; with fewer than 3 training "
             f"images: {first_few(few)}. It needs 2 classes or more, with 3 images or more each.")
    class_names = list(sizes.index)
    if all(name.isdecimal() for name in class_names):
        class_names.sort(key=int)  # 10 after 9
    for part, (images, labels, names) in parts.items():
        parts[part] = (images, pd.Index(class_names).get_indexer(labels), names)
    if "test" not in parts and "val" in parts:  # a second part is the test part
        parts["test"] = parts.pop("val")
    if "test" not in parts:
        parts["train"], parts["test"] = split(parts["train"], share=0.2)
    if "val" not in parts:
        parts["train"], parts["val"] = split(parts["train"], share=settings.VALIDATION_SPLIT)
    check_parts(parts, class_names, dataset)
    return parts["train"][:2], parts["val"][:2], parts["test"][:2], class_names


def check_parts(parts, class_names, dataset):
    """Warn of what would make results on your own data set worthless; stop if it is serious.

    parts: {"train": (images uint8, labels int, names of the images)}, and val and test.
    """
    for part, (images, labels, _) in parts.items():
        absent = [name for label, name in enumerate(class_names) if label not in labels]
        if absent:
            warn(f"the {part} part of {dataset} lacks images of some classes: {first_few(absent)}.")
        # Black pictures, or values from 0 to 1: pixels of a real image differ by far more than 4.
        share = np.mean(np.ptp(images, axis=(1, 2, 3)) < 4)
        if share >= 0.1:
            say = stop if share >= 0.9 else warn
            say(f"{share:.0%} of the {part} images of {dataset} are of one shade (values from "
                f"{images.min()} to {images.max()}, where 0 to 255 is expected).")
    warn_of_copies(parts["train"], parts["val"], parts["test"])


def read_npz(path):
    """Return {"train": (images uint8, labels str, names)}, perhaps val and test, of an .npz file.

    Its form is that of Keras' mnist.npz.
    """
    parts = {}
    try:
        held = np.load(path)  # refuses pickles, which can run code when they are loaded
        for part in [part for part in PARTS if f"x_{part}" in held or part == "train"]:
            x = held[f"x_{part}"]
            with np.errstate(invalid="ignore"):  # no NumPy warning: see below
                images = x.reshape(*x.shape[:3], -1).astype("uint8")
            labels = held[f"y_{part}"].ravel().astype(str)
            labels = np.array([in_one_form(label) for label in labels])
            names = np.array([f"x_{part}[{i}]" for i in range(len(x))])
            parts[part] = (images, labels, names)
            # uint8 holds whole numbers from 0 to 255: any others were changed by it. If all are
            # below 64, they were probably scaled before.
            fits = (images.shape[3:] in [(1,), (3,)] and len(labels) == len(x)
                    and images.shape[1:] == parts["train"][0].shape[1:]
                    and images.max() >= 64 and np.array_equal(images.reshape(x.shape), x))
            if not fits:
                raise ValueError(f"x_{part} is {x.dtype} {x.shape}, {x.min()} to {x.max()}")
    except Exception as error:  # broken files raise many kinds of error
        stop(f"--dataset {path} does not hold what is needed ({error}): x_train and y_train, "
             "optionally x_val, y_val, x_test, y_test. x: whole numbers from 0 to 255, (n, height, "
             "width) or (n, height, width, 3). y: a whole number or a name for each image.")
    return parts


def read_folder(folder, image_size, output_dir):
    """Read pictures of folder/class/*, or of folder/train/class/* (val, test), as read_npz does."""
    if pathlib.Path(output_dir).resolve().is_relative_to(folder.resolve()):
        stop(f"--output-dir {output_dir} lies in the data set {folder}: name a folder outside it.")
    files, folders = look_into(folder)
    groups = {}  # the files, by the parent of their class folder
    for path in files:
        groups.setdefault(path.parent.parent, []).append(path)
    arounds = find_parts(folder, groups, folders)
    count = sum(len(groups.get(around, [])) for around in arounds.values())
    gigabytes = count * image_size**2 * 3 / 1e9
    if gigabytes > MOST_GIGABYTES:
        fitting = int(image_size * math.sqrt(MOST_GIGABYTES / gigabytes))
        stop(f"{count} pictures of {image_size}x{image_size} pixels need {gigabytes:.1f} GB, more "
             f"than {MOST_GIGABYTES} GB (MOST_GIGABYTES): use --image-size {fitting} or less.")
    parts = {}
    for part, around in arounds.items():
        images, paths = read_pictures(groups.pop(around, []), (image_size, image_size, 3))
        if not paths:
            places = sorted({path.parent for path in files})
            stop(f"there are no pictures that can be read in {around}/CLASS/. Each class "
                 f"needs a folder with pictures in it. Files were found in: {first_few(places)}.")
        print(f"{len(paths)} pictures for {part} in {around}")
        labels = np.array([in_one_form(path.parent.name) for path in paths])
        names = np.array([readable(path.relative_to(folder)) for path in paths])
        parts[part] = (images, labels, names)
        with_pictures = {path.parent for path in paths}
        without = [path for path in folders if path.parent == around and path not in with_pictures]
        if without and part == "train":
            warn("folders without pictures that can be read do not become classes: "
                 f"{first_few(without)}.")
    left_out = sum(groups.values(), [])
    if left_out:
        warn(f"only files in class folders of {', '.join(map(readable, arounds.values()))} are read"
             f"; left out: {first_few(left_out)}.")
    return parts


def look_into(folder):
    """Return the files (sorted) and folders in a folder and its sub-folders, except hidden ones."""
    files = []
    folders = [folder]
    # Each folder is entered once, and none above the first one: a link may lead back there.
    entered = set(folder.resolve().parents)
    for place in folders:  # the list grows here: the folders inside, then those inside these, ...
        if place.resolve() in entered:
            continue
        entered.add(place.resolve())
        names = sorted(set(glob.glob("*", root_dir=place)) - SYSTEM_FILES)
        paths = [place / name for name in names]
        files += [path for path in paths if path.is_file()]
        inside = [path for path in paths if path.is_dir()]
        folders += sorted(inside, key=pathlib.Path.is_symlink)  # links come last
    return sorted(files, key=str), folders


def find_parts(folder, groups, folders):
    """Return {"train": the parent of its class folders}, optionally val and test.

    groups: lists of files, by the parent of their class folder. folders: all there are.
    """
    found = []  # pairs: part, folder
    for around in groups:
        if folder in around.parents and part_of(around):
            found.append((part_of(around), around))
    arounds = dict(found or [("train", folder)])
    if "train" not in arounds or len(arounds) < len(found):
        stop(f"which folder of {folder} is the training part? Exactly one name must contain train, "
             f"at most one val, at most one test. Found: {first_few([pair[1] for pair in found])}.")
    classes = [path for path in folders if path.parent == arounds["train"]]
    named_as_parts = [path for path in classes if part_of(path)]
    several = len({part_of(path) for path in named_as_parts}) > 1
    if several or classes and named_as_parts == classes:
        stop(f"these are parts, not classes: {first_few(named_as_parts)}. Each part needs a folder "
             "for each class, with pictures in it.")
    return arounds


def part_of(folder):
    """Return "train", "val" or "test" if the name has this word (seg_train, Test1), or None."""
    for part, words in PARTS.items():
        # No letter may come before or after the word: trains, rain and valley do not match.
        if re.search(rf"(?<![a-z])({words})(set|data|images)?(?![a-z])", folder.name.lower()):
            return part
    return None


def in_one_form(name):
    """Return a class name in composed letters (Macs store é as e and an accent), on one line."""
    return " ".join(unicodedata.normalize("NFC", readable(name)).split())


def without_colour(parts, dataset):
    """Return the parts, with one grey channel if no training image has colours.

    From three equal channels a network can't learn what a tint means: it could give the same answer
    to every picture taken under a yellowish lamp.
    """
    images, _, names = parts["train"]
    if images.shape[3] == 1:
        return parts
    # Stray tints: the channels of grey JPEGs differ by up to 3 levels, of yellowish scans by 13.
    coloured = [np.mean(np.ptp(image, axis=2) > 16) > 0.01 for image in images]
    if any(coloured):
        if np.mean(coloured) < 0.1:  # too few to learn what colours mean
            warn(f"only a few training images of {dataset} are in colour: "
                 f"{first_few(names[coloured])}. Colour photos may get wrong answers. If those "
                 "few are removed or made grey, all images become grey.")
        return parts
    print(f"The training images of {dataset} are grey: all parts become grey, with one channel.")
    for part, (images, *others) in parts.items():
        grey = [np.asarray(Image.fromarray(image).convert("L")) for image in images]
        parts[part] = (np.stack(grey)[..., np.newaxis], *others)
    return parts


def warn_of_copies(training, validation, test):
    """Warn if images of the other parts are training images, too: the network knows them by heart.

    Small versions are compared, so that a picture that was saved again is found as well. Their
    distance is 1 minus their correlation. The limit was found by trial: copies are below it, other
    images of MNIST and CIFAR-10 hardly ever are.
    """
    names = np.concatenate([training[2], validation[2], test[2]])
    small = np.concatenate([small_and_flat(part[0]) for part in (training, validation, test)])
    # Rounded, an image of one shade becomes all 0, which is like no other image.
    shades = np.round(small - small.mean(axis=1, keepdims=True), 3)
    first = len(training[1])  # the others come after these
    known = NearestNeighbors(n_neighbors=1, metric="cosine").fit(shades[:first])
    distances, twins = known.kneighbors(shades[first:])  # both (n, 1)
    copies = np.flatnonzero(distances < 0.00125)
    pairs = [f"{names[first + i]} = {names[twins[i, 0]]}" for i in copies]
    if pairs:
        warn(f"copies of training images among the {len(twins)} validation and test images: "
             f"{first_few(pairs)}. They make the accuracy too high: keep one of each. If their "
             "classes differ, which is right?")


def read_pictures(paths, image_shape, about=None):
    """Return pictures, uint8 (n, *image_shape), and the paths of those that could be read.

    about: what save_model wrote about the network, or None. Pictures left out are named.
    """
    images = np.zeros((len(paths), *image_shape), "uint8")
    paths_read = []
    remarks = {}  # each remark, and the pictures to which it applies
    bar = keras.utils.Progbar(len(paths), verbose=1 if len(paths) > 500 else 0, unit_name="picture")
    with ThreadPoolExecutor() as pool:  # threads suffice, as Pillow works outside of Python's lock
        results = pool.map(read_picture, paths, [image_shape] * len(paths), [about] * len(paths))
        for path, (image, remark) in zip(paths, results):
            if image is not None:
                images[len(paths_read)] = image
                paths_read.append(path)
            if remark:
                remarks.setdefault(remark, []).append(path)
            bar.add(1)
    for remark, names in remarks.items():
        warn(f"pictures {remark}: {first_few(names)}.")
    return images[:len(paths_read)], paths_read


def read_picture(path, image_shape, about):
    """Return a picture file as uint8 image_shape, or None, and a remark about it, or ""."""
    height, width, channels = image_shape
    remark = ""
    try:
        # Given the path, Pillow 13 reads some rotated TIFFs wrong; given the open file, it doesn't.
        with open(path, "rb") as file, Image.open(file) as picture:
            if picture.mode[0] in "IF" or re.search(";16[BLN]", str(picture.tile)):
                return None, "skipped, with more than 8 bits per value (save them with 8 bits)"
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # MPO: from phones
                remark = "with several pages or frames, of which only the first is read"
            # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if that is enough: much faster.
            picture.draft("RGB", (max(500, 2 * width), max(500, 2 * height)))
            picture = ImageOps.exif_transpose(picture)  # upright, however the camera was held
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            if picture.getextrema()[3][0] < 255:  # smallest alpha value
                remark = "that have transparent parts, which become white"
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        picture = picture.convert("L" if channels == 1 else "RGB")
        if about is not None and is_pen_on_paper(picture, image_shape, about):
            image, doubt = prepare_drawing(picture, image_shape, about)
            return image, doubt or remark
        picture = ImageOps.fit(picture, (width, height))  # the middle square
        return np.asarray(picture).reshape(image_shape), remark
    except UnidentifiedImageError:
        return None, ("skipped, as they are empty, or of a kind that Pillow can't read, such as "
                      "text or HEIC (save photos as JPEG or PNG)")
    except Exception as error:  # Pillow raises many kinds of error for broken files
        reason = getattr(error, "strerror", None) or re.sub(r"\d+", "...", str(error))
        return None, f"skipped, as they can't be read ({reason or type(error).__name__})"


def is_pen_on_paper(picture, image_shape, about):
    """Return whether this grey Pillow picture needs prepare_drawing."""
    if not about["white_on_black"]:
        return False
    values = np.asarray(picture)
    border = np.median(np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]]))
    if about["built_in"]:  # people show it photos, even of blackboards
        return values.shape != image_shape[:2] or border >= 25
    return border > 127  # drawings of the user's own set, of any size


def describe_drawings(x_train):
    """Return whether the training images are drawings in white on black, and the size of the ink.

    They count as drawings if nearly all are grey, with a dark border, a bright spot and ink of
    similar size. Digits, MNIST and Fashion-MNIST do; photos, or cells under a microscope, do not.
    """
    some = every_kth(x_train, 8_000_000)
    height, width, channels = some.shape[1:]
    ink = some[..., 0] > INK  # (n, height, width) bool
    down = ink.any(axis=2).sum(axis=1)  # the rows that hold ink
    across = ink.any(axis=1).sum(axis=1)  # the columns
    sizes = np.maximum(down / height, across / width)  # as shares of the image's sides
    usual = float(np.median(sizes))
    border = np.concatenate([some[:, 0], some[:, -1], some[:, :, 0], some[:, :, -1]], axis=1)
    is_drawing = ((np.median(border, axis=(1, 2)) < 25) & (some.max(axis=(1, 2, 3)) >= 200)
                  & (np.abs(sizes - usual) < 0.2 * usual))
    return {"white_on_black": channels == 1 and bool(is_drawing.mean() > 0.8), "ink_share": usual,
            "widest": float(np.percentile(across / down.clip(1), 99))}


def prepare_drawing(picture, image_shape, about):
    """Return a grey Pillow picture as white ink on black, cut out as in training, and a remark.

    Returns uint8 (height, width, 1). about: what describe_drawings says of the training images.
    """
    height, width, _ = image_shape
    picture.thumbnail((500, 500))
    grey = np.asarray(picture, float)
    # What differs from the paper is ink. The paper is as bright as most of the picture; or, where
    # the light falls off, as most of the neighbourhood: of 16x16 parts, the median of the 9x9
    # around each.
    parts = np.asarray(picture.resize((16, 16), Image.Resampling.BOX))
    corners = parts[::15, ::15]  # (2, 2)
    around = 9 if np.ptp(corners) > 30 else 31  # 31 covers all parts from any of them
    parts = Image.fromarray(ndimage.median_filter(parts, around, mode="nearest"))
    paper = np.asarray(parts.resize(picture.size, Image.Resampling.BILINEAR), float)
    # Camera noise is not ink: ink differs from the paper by 10 of 255 or more, and by much more
    # than most pixels do. (In a small copy, there is less noise.)
    small = Image.fromarray((grey - paper).astype("float32"))
    small.thumbnail((100, 100), Image.Resampling.BOX)
    difference = np.abs(small)
    if np.quantile(difference, 0.999) < np.clip(20 * np.median(difference), 10, 60):
        return np.zeros(image_shape, "uint8"), "without ink"
    ink = (grey - paper) / paper.clip(1)  # in the shade, both are darker by the same factor
    if -ink.min() > ink.max():
        ink = -ink  # dark on light
    ink = (ink / np.quantile(ink, 0.999).clip(1e-9)).clip(0, 1)
    box = Image.fromarray(ink > INK / 255).getbbox()
    drawing = Image.fromarray((255 * ink).astype("uint8")).crop(box)
    remark = ""
    if drawing.width / drawing.height > about["widest"]:
        remark = "with a wider drawing than in training (more than one? see predictions.png)"
    # Put it in the middle of a black frame, larger than the ink by the same factor as in training.
    scale = max(drawing.width / width, drawing.height / height) / about["ink_share"]
    frame = Image.new("L", (round(scale * width), round(scale * height)))
    frame.paste(drawing, ((frame.width - drawing.width) // 2, (frame.height - drawing.height) // 2))
    # A thin line turns pale when it shrinks: make it as bright as in training.
    image = ImageOps.autocontrast(frame.resize((width, height)), cutoff=(0, 3))
    return np.asarray(image).reshape(image_shape), remark


def files_to_ask(words):
    """Return the paths that the names of files and folders and wildcards stand for."""
    paths = []
    for word in words:
        # Windows passes on a wildcard such as *.jpg as it is. photo[1].jpg may be a file's name.
        names = [word] if os.path.exists(word) else sorted(glob.glob(word, recursive=True))
        for name in names or [word]:
            path = pathlib.Path(name)
            found = look_into(path)[0] if path.is_dir() else [path]
            if not found:
                warn(f"there are no files in {readable(path)}.")
            paths += found
    return paths


def predict_pictures(settings):
    """Classify picture files with the network of an earlier run; print the likeliest classes.

    PREDICT: files, folders and wildcards. Draws predictions.png, the pictures as the network was
    given them. Ends with exit status 1 if a file could not be read.
    """
    folder = results_folder(settings)
    model, about = load_trained_model(folder, settings.DATASET)
    paths = files_to_ask(settings.PREDICT)
    print(f"Asking {folder / 'model.keras'} ({model.name}), whose input shape is "
          f"{model.input_shape[1:]}")
    images, paths_read = read_pictures(paths, model.input_shape[1:], about)
    if not paths_read:
        raise SystemExit(1)
    titles = []
    for path, answer in zip(paths_read, predict(model, images)):
        likeliest = np.argsort(-answer)[:3]  # argsort: the indices, the smallest value first
        texts = [f"{about['class_names'][i]} {answer[i]:.1%}" for i in likeliest]
        print(f"{readable(path)}: {', '.join(texts)}")
        titles.append(textwrap.fill(f"{readable(path.name)[-40:]}: {texts[0]}", 22))
    shown = titles[:60]
    figure = plt.figure(figsize=(12, 2.6 * math.ceil(len(shown) / 6) + 1), layout="constrained")
    figure.suptitle("Your pictures as the network was given them, and what it takes them for")
    draw_grid(figure, images[:60], shown, columns=6)
    figure.savefig(folder / "predictions.png", dpi=120)
    print(f"{len(shown)} of {len(titles)} drawn in {folder / 'predictions.png'}")
    if len(paths_read) < len(paths):
        raise SystemExit(1)


# %% 10. Beyond the script: the trained network, a page for the browser, and a file for phones
def save_model(model, x_train, class_names, dataset, folder):
    """Write model.keras, labels.txt and model.json: what is needed to ask the network later."""
    model.save(folder / "model.keras")
    about = {"dataset": full_name(dataset), "class_names": class_names, "versions": VERSIONS,
             "built_in": dataset in CLASS_NAMES, **describe_drawings(x_train)}
    (folder / "model.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    (folder / "labels.txt").write_text("\n".join(class_names) + "\n", encoding="utf-8")
    return about


def load_trained_model(folder, dataset):
    """Return the model of an earlier run, and what save_model wrote beside it."""
    about = {"versions": "unknown versions"}
    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        about.setdefault("built_in", about["dataset"] in CLASS_NAMES)  # older files lack it
        model = keras.models.load_model(folder / "model.keras")  # runs no code from the file
    except Exception as error:  # no file, a broken file, another Keras, ...
        stop(f"--predict finds no network in {folder} that it can read ({str(error)[:300]}; saved "
             f"with {about['versions']}, here {VERSIONS}): first run --dataset {dataset} without "
             "--predict.")
    return model, about


# Layer settings of which the page supports one value only.
PAGE_TAKES = {"Conv2D": {"strides": (1, 1), "dilation_rate": (1, 1), "groups": 1},
              "MaxPooling2D": {"padding": "valid"},
              "ReLU": {"max_value": None, "negative_slope": 0, "threshold": 0}}


def network_steps(model):
    """Return a Sequential model as a list of steps for the page; ValueError if it can't be one.

    A step: its kind, its shape, and its weights as text, 32 bits each (base64).
    """
    steps = []
    maps = model.input_shape[1:]  # (height, width, channels) before the layer in hand

    def add(kind, shape=(), weights=(), **more):
        if kind not in ("convolution", "scale", "pooling", "relu", "softmax"):
            raise ValueError(f"the page can't compute {kind} ({layer.name})")
        text = base64.b64encode(np.asarray(weights, "<f4").tobytes()).decode("ascii")
        steps.append({"kind": kind, "shape": list(shape), "weights": text, **more})

    for layer in model.layers:
        kind = type(layer).__name__
        channels = layer.output.shape[-1]
        for name, value in PAGE_TAKES.get(kind, {}).items():
            if getattr(layer, name) != value:
                add(f"{kind} with {name} other than {value}")
        if kind == "Dense" and len(layer.input.shape) > 2:
            add("Dense on maps, without Flatten")
        if kind in ("Normalization", "BatchNormalization"):
            # Both compute input * scale + offset: two outputs reveal the two numbers.
            offset = layer(np.zeros((1, 1, 1, channels)))
            scale = (layer(np.full((1, 1, 1, channels), 1000.0)) - offset) / 1000
            add("scale", [channels], [scale, offset])
        elif kind == "MaxPooling2D" and layer.strides == layer.pool_size:
            add("pooling", layer.pool_size)
        elif kind == "GlobalMaxPooling2D":
            add("pooling", maps[:2])
        elif kind in ("Conv2D", "Dense"):
            # A dense layer is a convolution with filters as large as the maps before it.
            shape = layer.kernel.shape if kind == "Conv2D" else (*maps, channels)
            bias = layer.bias if layer.use_bias else np.zeros(channels)
            add("convolution", shape, np.concatenate([np.ravel(layer.kernel), bias]),
                same=getattr(layer, "padding", "valid") == "same")
            if layer.activation.__name__ != "linear":
                add(layer.activation.__name__)
        elif kind not in ("Dropout", "Flatten") and not kind.startswith("Random"):
            add(kind.lower())  # relu, or one that the page does not know
        if kind != "Flatten":
            maps = (1, 1, *layer.output.shape[1:])[-3:]  # after a dense layer: (1, 1, channels)
    return steps


def check_pattern(shape):
    """Return an image (1, *shape) float32, 0 to 255, by a formula that the page has, too."""
    row, column, channel = np.indices(shape)
    image = (row * row + 3 * row * column + 7 * column + 50 * channel) % 256
    return image[np.newaxis].astype("float32")


def write_page(model, class_names, about, title, folder):
    """Write try_it.html, the page that recognizes pictures with this model in a browser."""
    last = model.layers[-1]
    try:
        *steps, end = network_steps(model)
        if not isinstance(last, layers.Dense) or end["kind"] != "softmax":
            raise ValueError(f"the last layer ({last.name}) is not Dense with softmax")
    except ValueError as error:
        return warn(f"no try_it.html, which is for networks like those of MODEL cnn: {error}.")
    # The sums of the last layer for a pattern, before softmax: the page has to find the same ones.
    before_last = keras.Model(model.inputs[0], last.input)
    inputs = before_last(check_pattern(model.input_shape[1:]), training=False)
    sums = inputs @ last.kernel + (last.bias if last.use_bias else 0)
    content = {"title": title, "class_names": class_names, "steps": steps,
               "input_shape": model.input_shape[1:], "parameters": model.count_params(),
               "expected": np.ravel(sums).tolist()}
    for name in ("white_on_black", "built_in", "ink_share", "widest"):
        content[name] = about[name]
    # A browser ends the data at the first </script>, wherever it occurs; with no < there is none.
    text = json.dumps(content).replace("<", "\\u003c")
    path = folder / "try_it.html"
    path.write_text(PAGE.replace("@@THE TRAINED NETWORK@@", text), encoding="utf-8")
    megabytes = path.stat().st_size / 1e6
    if megabytes > 10:
        warn(f"try_it.html is {megabytes:.0f} MB: slow to send, to open and to answer. It becomes "
             "smaller with --dense-units 0 (global pooling), fewer --filters or a smaller "
             "--image-size.")


def write_phone_model(model, folder):
    """Write model.tflite, the network in the format of LiteRT (formerly TensorFlow Lite).

    It takes raw pixels 0 to 255, (1, height, width, channels) float32, and gives (1, classes). A
    failure prints one sentence and never ends the run.
    """
    path = folder / "model.tflite"
    # One image at a time: phones expect that.
    one_image = keras.InputSpec(shape=(1, *model.input_shape[1:]), dtype="float32")
    try:
        model.export(
            path, format="litert", verbose=False, input_signature=[one_image],
            optimizations=[tf.lite.Optimize.DEFAULT],
            target_spec={
                "supported_types": [tf.float16],  # weights of 16 bits: half the file
                "supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS],  # what every phone knows
            })
    except Exception as error:  # the converter raises many kinds; some fill a screen
        path.unlink(missing_ok=True)
        warn(f"There is no model.tflite: {' '.join(str(error).split())[:150]}.")


# %% 11. Settings and results
# For each setting: its type; then, for a number, the smallest and the largest value or, for a word,
# the choices, if they are few.
RULES = {
    "DATASET": (str,), "IMAGE_SIZE": (int, 8, 512), "VALIDATION_SPLIT": (float, 0.001, 0.9),
    "SHIFT": (int, 0, 512), "MIRROR": (bool,),
    "MODEL": (str, "cnn", *PRETRAINED), "FILTERS": (int, 1, 4096), "WHITENING": (bool,),
    "BATCH_NORMALIZATION": (bool,), "IDENTITY_START": (bool,), "DENSE_UNITS": (int, 0, 100_000),
    "DROPOUT": (float, 0, 0.99),
    "EPOCHS": (int, 1, 100_000), "BATCH_SIZE": (int, 1, 100_000),
    "OPTIMIZER": (str, "adam", "sgd"), "LEARNING_RATE": (float, 0.000001, 10),
    "SCHEDULE": (str, "cosine", "constant"), "WEIGHT_DECAY": (float, 0, 100),
    "FINE_TUNE": (int, 0, 100_000), "SEED": (int, 0, 2**32 - 1),
    "OUTPUT_DIR": (str,), "RESUME": (bool,), "PREDICT": (str,),
}
DECIDING = ["DATASET", "MODEL", "OPTIMIZER"]  # which values of the other settings count
LISTS = ["FILTERS", "PREDICT"]  # these hold several values
OF_THE_CNN = ["FILTERS", "WHITENING", "BATCH_NORMALIZATION", "IDENTITY_START", "DENSE_UNITS"]
WITHOUT_EFFECT = ["OUTPUT_DIR", "RESUME", "PREDICT"]  # on what is learned
NOT_OF_EVERY_RUN = ["predictions.png", "learned_features.png", "try_it.html", "model.tflite"]
VERSIONS = {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}
# Fonts for letters that DejaVu Sans lacks; those that are installed are used.
FONTS = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Devanagari", "SimHei",
         "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "PingFang SC", "Arial Unicode MS"]
installed = font_manager.get_font_names()
plt.rcParams["font.family"] = [font for font in FONTS if font in installed]


def stop(sentence):
    """End the program with one sentence and exit status 2, which means misuse."""
    print("image_recognition_cnn.py:", " ".join(sentence.split()), file=sys.stderr)
    raise SystemExit(2)


def warn(sentence):
    """Say in one line what was skipped or may be a surprise; the program goes on."""
    print("Warning:", " ".join(sentence.split()), file=sys.stderr)


def first_few(names):
    """Return how many there are, and the first five of them: "7 (a, b, c, d, e ...)"."""
    shown = ", ".join(map(readable, names[:5])) + (" ..." if len(names) > 5 else "")
    return f"{len(names)} ({shown})" if names else "none"


def readable(name):
    """Return a name as text that can be printed: a byte that is not UTF-8 as \\udce9, say."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def read_settings(words=()):
    """Return the settings of a run as one object: the block at the top, changed by flags.

    words: the flags, as in ["--epochs", "3"]. The block itself stays as it is, so that a notebook
    can change it and read it again.
    """
    written = {name: globals()[name] for name in RULES}
    flags = vars(flag_parser().parse_args(words))
    written.update(flags)
    dataset, model, optimizer = [checked(name, written[name]) for name in DECIDING]
    # The cases of a dict(...), the most specific one first. The name of your own folder is a case,
    # too, but a folder that happens to be called mnist or sgd is not treated as one of these.
    cases = [optimizer, model] if model == "cnn" else [optimizer, model, "pretrained"]
    title = data_title(dataset)
    reserved = [*CLASS_NAMES, "adam", "sgd", "cnn", *PRETRAINED, "pretrained", "others"]
    if dataset in CLASS_NAMES or title not in reserved:
        cases.append(title)
    cases.append("others")
    values = {}
    for name in RULES:
        value = written[name]
        if isinstance(value, dict) and name not in DECIDING:
            fitting = [case for case in cases if case in value]
            if not fitting:
                stop(f"{name} has no value for {dataset}: write others=... into its dict(...).")
            value = value[fitting[0]]
        values[name] = checked(name, value)
    if dataset in CLASS_NAMES and any(pathlib.Path(dataset).glob("*/*")):
        warn(f"--dataset {dataset} is the built-in data set; your folder of this name is "
             f"--dataset ./{dataset}.")
    has_own_size = dataset in CLASS_NAMES or dataset.lower().endswith(".npz")
    useless = ["FINE_TUNE", "IMAGE_SIZE"] if has_own_size else ["FINE_TUNE"]
    if model != "cnn":
        useless = OF_THE_CNN if values["FINE_TUNE"] > 0 else [*OF_THE_CNN, "SHIFT"]
    for name in flags:
        if name in useless and not values["PREDICT"]:
            warn(f"{name} has no effect on training with MODEL {model} and these settings.")
    return argparse.Namespace(**values)


def flag_parser():
    """Return the parser of the flags, one for each setting; its help is the comment after #."""
    path = globals().get("__file__")  # in the cells of a notebook there is no file
    text = pathlib.Path(path).read_text(encoding="utf-8") if path else ""
    parser = argparse.ArgumentParser(
        "image_recognition_cnn.py", allow_abbrev=False, argument_default=argparse.SUPPRESS,
        usage="python image_recognition_cnn.py [--setting value ...] (--help lists all)")
    for name, (kind, *_) in RULES.items():
        found = re.search(rf"^{name} = (.+?)(?:  # (.+))?$", text, re.MULTILINE)
        value, meaning = found.groups() if found else (None, None)
        options = {"dest": name, "help": f"{meaning} (now: {value})".replace("%", "%%")}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = kind
            options["nargs"] = "+" if name in LISTS else None
        if name == "PREDICT":
            options["action"] = "extend"  # --predict a.jpg --predict b.jpg asks about both
        parser.add_argument(f"--{name.lower().replace('_', '-')}", **options)
    return parser


def checked(name, value):
    """Return the value in the type that the setting has, or stop if it isn't allowed."""
    kind, *limits = RULES[name]
    values = list(value) if name in LISTS and isinstance(value, (list, tuple)) else [value]
    if name == "FILTERS" and not values:
        stop("FILTERS can't be empty: it takes a number for each block, and at least one.")
    for one in values:
        fits = (type(one) is kind or (kind is float and type(one) is int)) and one != ""
        if fits and limits:
            fits = one in limits if kind is str else limits[0] <= one <= limits[1]
        if not fits:
            takes = {str: "a string", bool: "True or False", int: "a whole number",
                     float: "a number"}[kind]
            if kind is str and limits:
                takes = " or ".join(limits)
            elif limits:
                lowest = np.format_float_positional(limits[0], trim="-")  # never 1e-06
                takes += f" from {lowest} to {limits[1]}"
            stop(f"{name} can't be {one!r}: it takes {takes}.")
    values = [kind(one) for one in values]
    return values if name in LISTS else values[0]


def data_title(dataset):
    """Return the short name of a data set, for titles and its folder: cats for my/cats.npz."""
    path = pathlib.Path(dataset)
    return readable(path.stem if path.suffix.lower() == ".npz" else path.resolve().name)


def full_name(dataset):
    """Return the full path of a data set, which is unique, or the name of a built-in one."""
    return dataset if dataset in CLASS_NAMES else readable(pathlib.Path(dataset).resolve())


def from_keras(load, place, **options):
    """Return load(**options), for which Keras downloads a file once; stop if that fails.

    place: where the file belongs in Keras' folder; a copy put there works, too.
    """
    socket.setdefaulttimeout(60)  # seconds; a dead connection would hold up the run for ever
    home = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    try:
        return load(**options)
    except Exception as error:  # no internet, a broken file, no room on the disk, ...
        reason = " ".join(str(error).split())[:200].rstrip(".")
        stop(f"Keras could not load its file ({reason}): put a copy of it at {home / place} (or "
             f"set KERAS_HOME to the folder that holds {place}). --dataset digits and "
             "--model cnn need no download.")


def results_folder(settings):
    """Return the folder of the data set's results; stop if it holds those of another data set."""
    folder = pathlib.Path(settings.OUTPUT_DIR, data_title(settings.DATASET))
    with contextlib.suppress(OSError, ValueError):  # no earlier run
        owner = json.loads((folder / "model.json").read_text(encoding="utf-8"))["dataset"]
        if owner != full_name(settings.DATASET):
            stop(f"{folder} belongs to another data set, {owner}: use that one, or another folder "
                 "with --output-dir.")
    return folder


def open_results_folder(settings, data_hash):
    """Return the folder in which this run collects its files: a new one, or with RESUME an old one.

    The files take their place at the very end, so that a run that fails leaves the results of the
    run before it as they were. The hash in the folder's name changes with the settings and with any
    pixel: a run that was cut off goes on only with the settings and the data that it had.
    """
    state = {name: value for name, value in vars(settings).items() if name not in WITHOUT_EFFECT}
    state["DATASET"] = full_name(settings.DATASET)
    results = results_folder(settings)
    mark = f".unfinished_{joblib.hash([state, data_hash])[:8]}_"
    remove_forgotten_runs(results.parent)
    found = sorted(path.parents[1] for path in results.parent.glob(f"*{mark}*/resume/history.csv"))
    name = results.name + mark + time.strftime("%Y%m%d_%H%M%S_")
    if settings.RESUME:
        if not found:
            stop(f"--resume finds no unfinished run in {settings.OUTPUT_DIR} with these settings "
                 "and this data: give the same flags as before, or leave --resume out.")
        try:  # the newest one; two programs can't both give it a new name
            return found[-1].rename(results.with_name(f"{name}resumed"))
        except FileNotFoundError:
            stop(f"another program has just continued {found[-1]}.")
    if found:
        print(f"{found[-1]} is an unfinished run with these settings and this data, or one "
              "still going in another window. This run begins anew; --resume would continue an "
              "unfinished one.")
    results.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=name, dir=results.parent))  # used by no other run
    atexit.register(remove_if_untrained, folder)
    return folder


def remove_forgotten_runs(output_dir):
    """Remove unfinished runs in which nothing has happened for 30 days."""
    for folder in output_dir.glob("*.unfinished_????????_????????_??????_*"):
        with contextlib.suppress(FileNotFoundError):  # another run has just finished
            # An epoch changes the time of the sub-folder only.
            newest = max(path.stat().st_mtime for path in [folder, *folder.glob("resume")])
            if time.time() - newest > 30 * 24 * 3600:  # seconds
                shutil.rmtree(folder, ignore_errors=True)
                print(f"Removed a run that was left unfinished for 30 days: {folder}")


def remove_if_untrained(folder):
    """Remove the folder of a run that ended before its first epoch was over."""
    if not (folder / "resume" / "history.csv").exists():
        shutil.rmtree(folder, ignore_errors=True)


def weights_file(model, folder, first_epoch):
    """Return the file that keeps the weights of a training run for RESUME.

    The hash in its name changes with any layer. (Names such as conv2d_3 count the layers made
    before, so these counts are left out.)
    """
    layers_of_model = re.sub(r"_\d+", "", str(model.get_config()))
    return folder / "resume" / f"from_epoch_{first_epoch}_{joblib.hash(layers_of_model)[:8]}.npz"


def restore_weights(model, folder, settings, first_epoch, steps_per_epoch):
    """Return the epoch to begin with: first_epoch or, with RESUME, the first one not finished."""
    kept = weights_file(model, folder, first_epoch)
    of_this_training = list(kept.parent.glob(f"from_epoch_{first_epoch}_*"))
    if not settings.RESUME or not of_this_training:
        return first_epoch
    if kept not in of_this_training:
        stop(f"--resume can't continue {folder}: the layers of the network have been changed. "
             "Change them back, or leave --resume out.")
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    try:
        with np.load(kept) as held:
            for variable, name in zip(variables, held.files, strict=True):
                variable.assign(held[name])
        pd.read_csv(kept.with_name("history.csv"))  # can it be read?
    except Exception as error:  # a broken file raises many kinds of error
        stop(f"--resume can't read {kept} ({str(error)[:200]}): leave --resume out.")
    return first_epoch + int(model.optimizer.iterations) // steps_per_epoch


def after_each_epoch(model, folder, settings, first_epoch):
    """Return what Keras should do after each epoch: keep the table and the weights, draw curves."""
    kept = weights_file(model, folder, first_epoch)
    kept.parent.mkdir(exist_ok=True)
    table = kept.with_name("history.csv")
    ends = [time.perf_counter()]

    def keep(epoch, logs):  # logs: a dict of accuracy, loss, val_accuracy, val_loss
        ends.append(time.perf_counter())
        row = {"epoch": epoch, **logs, "learning_rate": float(model.optimizer.learning_rate),
               "seconds": round(ends[-1] - ends[-2], 2)}
        # With RESUME an epoch may be done again: its old row, at index `epoch`, is left out.
        earlier = pd.read_csv(table)[:epoch] if epoch > 0 else None
        history = pd.concat([earlier, pd.DataFrame([row])], ignore_index=True)
        # Written under another name, then moved: so the file is whole whenever a run is cut off.
        history.to_csv(kept.with_name("new.csv"), index=False)
        kept.with_name("new.csv").replace(table)
        # With the optimizer's sums of gradients, the training continues as if it had not stopped
        # (but for the order of the images, which begins again).
        np.savez(kept.with_name("new.npz"), *model.variables, *model.optimizer.variables)
        kept.with_name("new.npz").replace(kept)
        if row["seconds"] > 10:  # drawing takes about one second
            draw_curves(history, data_title(settings.DATASET), folder)
            plt.close()
            print(f"The curves so far: {folder / 'accuracy_loss_curves.png'}")

    # The second callback ends the training when the loss is NaN (not a number).
    return [callbacks.LambdaCallback(on_epoch_end=keep), callbacks.TerminateOnNaN()]


def read_history(folder):
    """Return the table of the epochs; stop if there is none, or if the training has failed."""
    table = folder / "resume" / "history.csv"
    if not table.exists():
        stop("ended by Ctrl-C in the first epoch; results of earlier runs stay as they were.")
    history = pd.read_csv(table)
    if not np.isfinite(history[["loss", "val_loss"]].iloc[-1]).all():
        shutil.rmtree(folder, ignore_errors=True)  # RESUME must not continue this
        stop("The loss became NaN (not a number), most likely because the steps were too large: "
             "try a --learning-rate ten times smaller or, if it happened in fine-tuning, no "
             "--fine-tune.")
    return history


@contextlib.contextmanager
def one_at_a_time(lock):
    """Wait until no other run holds the lock, a folder: only one of two programs can make it."""
    begun = time.monotonic()
    while True:
        try:
            lock.mkdir()
            break
        except FileExistsError:
            with contextlib.suppress(OSError):  # it may just have been removed
                # A lock is held for less than a second; an older one was left by a killed run.
                if time.time() - lock.stat().st_mtime > 10:  # seconds
                    lock.rmdir()
            if time.monotonic() - begun > 60:
                raise TimeoutError(f"{lock} does not go away: remove it") from None
            time.sleep(0.1)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # if it can't be removed now, the next run tries again
            lock.rmdir()


def publish_results(folder, settings, results, history):
    """Write metrics.json, and move all files to their place; return what metrics.json holds.

    The user's own files stay there. Files are moved one by one, which needs no room on the disk, so
    none is cut short, and the sub-folder "resume" stays, so that a move that failed can be done
    again. model.json comes last: no network is left beside the class names of another one.
    """
    metrics = {**results, "epochs_trained": len(history),
               "training_seconds": round(float(history["seconds"].sum()), 1),
               "settings": vars(settings), "versions": VERSIONS}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    shutil.copyfile(folder / "resume" / "history.csv", folder / "history.csv")
    place = results_folder(settings)
    place.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in folder.iterdir() if path.is_file()}
    with one_at_a_time(place.with_name(f"{place.name}.lock")):
        results_folder(settings)  # another data set of this name may just have taken it
        for old in ["model.json", *NOT_OF_EVERY_RUN]:
            (place / old).unlink(missing_ok=True)
        for name in [*sorted(names - {"model.json"}), "model.json"]:
            (folder / name).replace(place / name)
    names = sorted(path.name for path in place.iterdir())
    print(f"Results in {place.resolve()}: {', '.join(names)}")
    return metrics


def record_experiment(settings, metrics, data_hash):
    """Add a row to experiments.csv; print the last runs on the same images, and the best one."""
    path = pathlib.Path(settings.OUTPUT_DIR, "experiments.csv")
    row = {"TIME": time.strftime("%Y-%m-%d %H:%M:%S"), **vars(settings),
           "DATASET": readable(settings.DATASET), "DATA": data_hash, **metrics}
    for name in [*WITHOUT_EFFECT, "classes", "confusion_matrix", "settings", "versions"]:
        row.pop(name, None)
    rows = pd.DataFrame([row]).astype(str)
    try:
        with one_at_a_time(path.with_suffix(".lock")):
            earlier = read_experiments(path)
            rows = pd.concat([earlier, rows], ignore_index=True)
            if earlier is not None and list(earlier) == list(rows):  # the same columns
                line_break = b"" if path.read_bytes().endswith(b"\n") else b"\n"
                line = rows[-1:].to_csv(index=False, header=False, lineterminator="\n")
                with open(path, "ab") as file:
                    file.write(line_break + line.encode("utf-8"))
            else:
                rows.to_csv(path.with_suffix(".new"), index=False)
                path.with_suffix(".new").replace(path)  # one move: the table is never half written
    except OSError as error:
        warn(f"can't add this run to {path} ({error}): is it open in another program? The values "
             "are in metrics.json.")
    print_experiments(rows)


def read_experiments(path):
    """Return the rows of experiments.csv, as strings; set aside a file that is not such a table."""
    if not path.exists():
        return None
    with contextlib.suppress(ValueError):  # another program has saved it in another form
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        if {"TIME", "DATA", "validation_accuracy"} <= set(rows.columns):
            return rows
    aside = path.with_name(time.strftime("experiments_set_aside_%Y%m%d_%H%M%S.csv"))
    path.replace(aside)
    warn(f"{path} is no longer the table that this program wrote, so it was renamed {aside}, and a "
         "new one was started.")
    return None


def print_experiments(rows):
    """Print the last three runs on the images of the last one, and the best of all."""
    accuracies = pd.to_numeric(rows["validation_accuracy"], errors="coerce")
    same_data = rows[(rows["DATA"] == rows["DATA"].iloc[-1]) & accuracies.between(0, 1)]
    best = accuracies[same_data.index].idxmax()
    shown = same_data.loc[sorted({best, *same_data.index[-3:]})]
    changed = [name for name in [*RULES, "epochs_trained"]
               if name in shown and shown[name].nunique() > 1]
    table = shown[["TIME", *changed]].copy()
    count = int(rows["validation_images"].iloc[-1])
    for i in shown.index:
        low, high = interval_of(round(accuracies[i] * count), count)
        table.loc[i, "validation"] = f"{accuracies[i]:.1%}"
        table.loc[i, "95 % interval"] = f"{low:.1%} to {high:.1%}"
        table.loc[i, ""] = "best" if i == best else ""
    print("A different --seed alone changes results, too. Runs on these images: "
          f"{len(same_data)}. The latest ones, and the one with the best validation accuracy:\n"
          f"{table.to_string(index=False)}")


# %% References: the papers cited as (author, year)
# Chollet 2020, Transfer learning and fine-tuning, keras.io. Goyal et al. 2017, Accurate, Large
# Minibatch SGD, arXiv:1706.02677. He et al. 2015, ResNet, arXiv:1512.03385. Ioffe and Szegedy 2015,
# Batch Normalization, arXiv:1502.03167. Jordan 2024, 94 % on CIFAR-10 in 3.29 Seconds,
# arXiv:2404.00498. Kingma and Ba 2015, Adam, arXiv:1412.6980. Loshchilov and Hutter 2017, SGDR,
# arXiv:1608.03983; 2019, Decoupled Weight Decay Regularization, arXiv:1711.05101. Page 2019, How to
# Train Your ResNet. Sandler et al. 2018, MobileNetV2, arXiv:1801.04381. Simonyan and Zisserman
# 2014, VGG, arXiv:1409.1556. Wilson 1927, Probable Inference, the Law of Succession, and
# Statistical Inference. Zeiler and Fergus 2014, Visualizing CNNs, arXiv:1311.2901.


# %% The page of chapter 10: first the network as plain loops, then pictures, then the answer
PAGE = r"""<!doctype html><html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<style>
  * { box-sizing: border-box; margin: 0; }
  html { --accent: light-dark(#4a3fd1, #b0a8ff); color-scheme: light dark; padding: .75rem;
    background: light-dark(#f6f4ef, #121219); font: 1rem/1.4 system-ui; overflow-wrap: anywhere; }
  main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
    gap: .75rem; max-width: 56rem; margin: auto; }
  header, details { grid-column: 1 / -1; }
  p, figcaption { color: light-dark(#5d5a68, #aaa7ba); font-size: .875rem; }
  .card, button, label { padding: .5rem 1rem; border: 1px solid light-dark(#dedad0, #3b3a49);
    border-radius: 1.25rem; background: light-dark(#fff, #1c1c26); }
  button, label { display: inline-block; margin: .75rem .25rem .5rem 0; font: inherit; }
  :focus-visible, label:focus-within { outline: 3px solid var(--accent); outline-offset: 2px; }
  #pad { display: block; width: min(100%, max(12rem, 44vh)); aspect-ratio: 1; margin: .25rem auto;
    object-fit: contain; border-radius: 1rem; background: black; touch-action: none; }
  #file, #spoken { position: absolute; width: 1px; height: 1px; opacity: 0; }
  #alarm { color: light-dark(#b3261e, #ffb4ab); font-weight: 700; }
  #answer { color: var(--accent); font-size: 1.8rem; font-weight: 700; line-height: 1.2; }
  section figure { float: right; margin-left: 1rem; }
  #bars { clear: both; padding: .5rem 0; }
  #bars li { display: grid; grid-template-columns: 1fr 1fr 4rem; gap: .6rem; }
  meter { width: 100%; } meter::-webkit-meter-optimum-value { background: var(--accent); }
  #seen, details canvas { width: 6rem; border-radius: .4rem; image-rendering: pixelated; }
  details canvas { width: min(11%, 4rem); margin: 1px; }
</style>
<main>
  <header><h1 id="title"></h1><p id="about"></p><p id="alarm" role="alert"
    hidden>This page does not compute what the trained network computes: do not trust its
    answers.</p></header>
  <section class="card" aria-label="Picture">
    <canvas id="pad" role="img" aria-label="The picture"></canvas>
    <button id="clear" onclick="clearPad()">Clear</button>
    <label>Picture <input type="file" id="file" accept="image/*" onclick="this.value = ''"
      onchange="openPicture(event, this)"></label>
    <button id="camera" onclick="startCamera()">Camera</button>
    <p id="message" role="status"></p>
  </section>
  <section class="card" aria-label="Answer">
    <figure><figcaption>The network sees</figcaption><canvas id="seen"></canvas></figure>
    <p>The answer</p><p id="answer"></p><p id="sure"></p>
    <ul id="bars" aria-label="The likeliest classes"></ul><p id="spoken" role="status"></p>
  </section>
  <details class="card" id="inside" ontoggle="look()"><summary>Look inside the network</summary>
    <p>Each tile is the map of one filter: bright where the filter responds strongly.</p>
    <div id="stages"></div></details>
</main>
<script type="application/json" id="data">@@THE TRAINED NETWORK@@</script>
<script>
const element = (id) => document.getElementById(id);
const make = (tag) => document.createElement(tag);
const range = (number) => Array.from({length: number}, (_, i) => i);  // 0, 1, 2, ...
const largest = (numbers) => numbers.reduce((a, b) => Math.max(a, b));
const sum = (numbers) => numbers.reduce((a, b) => a + b);

// ---------- The network: a list of steps with their numbers, and a few plain loops ----------
const data = JSON.parse(element("data").textContent);
const {class_names: names, input_shape: [HEIGHT, WIDTH, CHANNELS]} = data;
// The weights come as text (base64), four bytes for each number.
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
for (const step of data.steps) step.weights = new Float32Array(bytesOf(step.weights).buffer);

// Maps are lines of pixels; a pixel is a list of numbers, its channels: x[row][column][channel].
const makeMaps = (height, width, makePixel) => range(height).map(
  (row) => range(width).map((column) => makePixel(row, column)));
const change = (x, changePixel) => x.map((line) => line.map(changePixel));

// A filter lies on a patch of the image, multiplies each number of the patch by one of its weights,
// and adds up the products: one number, large where the patch looks like the filter. Then it moves
// on by one pixel. Each filter gives one map, a channel of the result. (A dense layer has filters
// as large as the maps: they fit in one place only. If `same`, the filter may stick out over the
// edge.)
function convolution(x, {shape: [rows, columns, channels, filters], weights, same}) {
  const [above, left] = same ? [(rows - 1) >> 1, (columns - 1) >> 1] : [0, 0];
  const height = same ? x.length : x.length - rows + 1;
  const width = same ? x[0].length : x[0].length - columns + 1;
  return makeMaps(height, width, (row, column) => {
    const sums = weights.slice(-filters);  // the last weights are the biases: sums begin with them
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) {
        const pixel = x[row + i - above]?.[column + j - left] ?? [];  // outside: empty
        for (let k = 0; k < pixel.length; k++) {
          const value = pixel[k];
          if (value === 0) continue;  // nothing to add, which is common after ReLU
          const start = ((i * columns + j) * channels + k) * filters;
          for (let f = 0; f < filters; f++) sums[f] += value * weights[start + f];
        }
      }
    }
    return sums;
  });
}

// Each patch of a map becomes one number: in pooling, its largest one.
function pool(x, rows, columns, combine) {
  return makeMaps(Math.floor(x.length / rows), Math.floor(x[0].length / columns), (row, column) => {
    const lines = x.slice(row * rows, (row + 1) * rows);
    const pixels = lines.flatMap((line) => line.slice(column * columns, (column + 1) * columns));
    return pixels.reduce((one, other) => one.map((value, k) => combine(value, other[k])));
  });
}
const pooling = (x, {shape: [rows, columns]}) => pool(x, rows, columns, Math.max);

// Normalization: each channel is multiplied by one number, then another number is added.
const scale = (x, {shape: [channels], weights}) => change(x, (pixel) => pixel.map(
  (value, k) => value * weights[k] + weights[channels + k]));
// ReLU: what is below 0 becomes 0. Without it, many layers could do little more than one.
const relu = (x) => change(x, (pixel) => pixel.map((value) => Math.max(0, value)));
// Softmax: any numbers become probabilities, all above 0 and adding up to 1; larger stays larger.
const softmax = (x) => change(x, (pixel) => {
  const most = largest(pixel);  // subtracted first, or exp could become infinite
  const powers = pixel.map((value) => Math.exp(value - most));
  return powers.map((power) => power / sum(powers));
});

// The whole network: what comes out of one step goes into the next.
function recognize(image) {
  const compute = {convolution, pooling, scale, relu, softmax};
  const stages = [];  // what came out of each ReLU, to be looked at
  let x = change(image, (pixel) => new Float32Array(pixel));
  for (const step of data.steps) {
    x = compute[step.kind](x, step);
    if (step.kind === "relu") stages.push(x);
  }
  const sums = [...x[0][0]];  // one pixel is left, with a channel for each class
  return {sums, probabilities: softmax([[sums]])[0][0], stages};
}

// Keras was asked about this pattern, too: does this page find nearly the same sums?
function isAsTrained() {
  const {sums} = recognize(makeMaps(HEIGHT, WIDTH, (row, column) => range(CHANNELS).map(
    (channel) => (row * row + 3 * row * column + 7 * column + 50 * channel) % 256)));
  const most = largest(data.expected.map(Math.abs));
  return data.expected.every((value, i) => Math.abs(sums[i] - value) <= 0.01 * most);
}

// ---------- From any picture to the pixels that the network knows ----------
const clip = (value, most) => Math.min(most, Math.max(0, value));

// The number below which a share of all numbers lies: 0.5 for the median.
function quantile(numbers, share) {
  const sorted = new Float32Array(numbers.flat(2)).sort();
  return sorted[Math.floor(share * (sorted.length - 1))];
}

// A canvas, scaled to another size, as maps: grey, or red, green and blue.
function read(canvas, height, width) {
  const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0, width, height);
  const rgba = copy.getImageData(0, 0, width, height).data;
  return makeMaps(height, width, (row, column) => {
    const i = 4 * (row * width + column);
    if (CHANNELS === 3) return [rgba[i], rgba[i + 1], rgba[i + 2]];
    return [0.299 * rgba[i] + 0.587 * rgba[i + 1] + 0.114 * rgba[i + 2]];
  });
}

// The paper at each pixel: the median of the pad or, in uneven light, of the 9 x 9 parts near it.
function findPaper(height, width) {
  const parts = read(pad, 16, 16);
  const corners = [parts[0][0], parts[0][15], parts[15][0], parts[15][15]];
  const isEven = quantile(corners, 1) - quantile(corners, 0) <= 30;
  const medians = makeMaps(16, 16, (row, column) => {
    const near = makeMaps(9, 9, (i, j) => parts[clip(row + i - 4, 15)][clip(column + j - 4, 15)]);
    return [quantile(isEven ? parts : near, 0.5)];
  });
  return read(paint(make("canvas"), medians), height, width);  // smoothly enlarged
}

// The image for the network, cut out of larger maps around (middle, centre): each of its pixels is
// the mean of 4 x 4 points in a square of side `step`.
function cutOut(maps, middle, centre, step) {
  const points = makeMaps(4 * HEIGHT, 4 * WIDTH, (row, column) => {
    const y = Math.floor(middle + step * ((row + 0.5) / 4 - HEIGHT / 2));
    const x = Math.floor(centre + step * ((column + 0.5) / 4 - WIDTH / 2));
    return (maps[y]?.[x] ?? Array(CHANNELS).fill(0)).map((value) => value / 16);  // outside: black
  });
  return pool(points, 4, 4, (a, b) => a + b);
}

// Is there a drawing to be cut out? Or is the picture like the training images, taken as it is?
function isToBeCutOut(copy) {
  if (!data.white_on_black) return false;
  if (onPad === "drawing") return true;
  const sides = copy.flatMap((line) => [line[0], line.at(-1)]);
  const border = quantile([copy[0], copy.at(-1), sides], 0.5);
  if (!data.built_in) return border > 127;  // with your own data, only from bright paper
  return border >= 25 || pad.height !== HEIGHT || pad.width !== WIDTH;
}

// The ink, 0 to 255: what differs from the paper. Or null: blank paper, perhaps a camera's noise.
function findInk(copy) {
  const paper = findPaper(copy.length, copy[0].length);
  const difference = copy.map(
    (line, row) => line.map(([value], column) => value - paper[row][column][0]));
  // Half of the pixels differ by less than the noise, but ink by 20 times the noise. Differences
  // below 10 (of 255) are never ink; those above 60 always are.
  const noise = quantile(change(difference, Math.abs), 0.5);
  const strongest = Math.max(-quantile(difference, 0.001), quantile(difference, 0.999));
  if (strongest < Math.max(10, Math.min(60, 20 * noise))) return null;
  const contrast = difference.map((line, row) => line.map(  // in the shade, both are darker
    (value, column) => value / (paper[row][column][0] + 1)));
  const [dark, light] = [quantile(contrast, 0.001), quantile(contrast, 0.999)];
  return change(contrast, (value) => [255 * clip(value / (-dark > light ? dark : light), 1)]);
}

// The image for the network (null: there is nothing to see), and a remark about it. From a photo,
// the middle; from a drawing, the ink, white on black, as large as in training.
function prepare() {
  if (onPad === "nothing") return [null, ""];
  const smaller = Math.min(1, SIDE / Math.max(pad.width, pad.height));
  const [height, width] = [Math.ceil(smaller * pad.height), Math.ceil(smaller * pad.width)];
  const copy = read(pad, height, width);
  const step = Math.min(height / HEIGHT, width / WIDTH);
  if (!isToBeCutOut(copy)) return [cutOut(copy, height / 2, width / 2, step), ""];
  const ink = findInk(copy);
  if (!ink) return [null, ""];
  const rows = range(height).filter((row) => ink[row].some(([value]) => value > 100));
  const columns = range(width).filter((column) => ink.some((line) => line[column][0] > 100));
  const [tall, wide] = [rows.at(-1) + 1 - rows[0], columns.at(-1) + 1 - columns[0]];
  const remark = wide / tall > data.widest
    ? ", but the drawing is wider than in training (is there more than one?)" : "";
  const size = Math.max(tall / HEIGHT, wide / WIDTH) / data.ink_share;
  const image = cutOut(ink, rows[0] + tall / 2, columns[0] + wide / 2, size);
  const white = Math.max(1, quantile(image, 0.97));  // a thin line turns pale when it shrinks
  return [change(image, ([value]) => [255 * clip(value / white, 1)]), remark];
}

// ---------- Where pictures come from: pen, file, camera ----------
const pad = element("pad");  // shows the drawing, the picture or what the camera sees
const pen = pad.getContext("2d", {alpha: false});  // empty, it is black
const SIDE = Math.max(100, 2 * HEIGHT, 2 * WIDTH);  // of the copy to examine: sharp enough, quick
const START = `${data.white_on_black ? "Draw, or take" : "Choose, drop, paste or take"} a picture.`;
let onPad = "nothing";  // or "drawing", or "picture"
let stream = null;  // of the running camera
let last = null;  // where the pen was, while it draws
let waiting = 0;  // for the pen to rest, then for the network
let hearing = 0;  // a timer: the answer is spoken once unchanged for a second

function clearPad(sentence = START) {
  if (stream) for (const track of stream.getTracks()) track.stop();
  stream = null;
  [pad.width, pad.height] = [300, 300];
  onPad = "nothing";
  element("message").textContent = sentence;
  look();
}

function showPicture(source, width, height) {
  const smaller = Math.min(1, 4 * SIDE / Math.max(width, height));
  [pad.width, pad.height] = [Math.ceil(width * smaller), Math.ceil(height * smaller)];
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "white";  // behind transparent parts
  pen.fillRect(0, 0, pad.width, pad.height);
  pen.drawImage(source, 0, 0, pad.width, pad.height);
  onPad = "picture";
  look();
}

async function openPicture(event, {files: [file]}) {
  event.preventDefault();  // or the browser shows the file in place of the page
  if (!file) return;
  clearPad("");
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (bitmap) showPicture(bitmap, bitmap.width, bitmap.height);
  else clearPad(`This browser can't read ${file.name} as a picture; try a JPEG or PNG file.`);
}

async function startCamera() {
  try {
    const found = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
    clearPad("");
    stream = found;
    stream.getTracks()[0].onended = () => clearPad("The camera was disconnected.");
    const video = Object.assign(make("video"), {muted: true, playsInline: true, srcObject: found});
    await video.play();
    while (stream === found) {
      showPicture(video, video.videoWidth, video.videoHeight);
      await new Promise((done) => setTimeout(done, 100));
    }
  } catch (error) {
    clearPad(`No camera (${error.name}): refused, missing, in use, or no https.`);
  }
}

function drawTo(event) {
  const zoom = 300 / pad.clientWidth;
  const point = [event.offsetX * zoom, event.offsetY * zoom];
  Object.assign(pen, {strokeStyle: "white", lineWidth: 27, lineCap: "round"});
  pen.beginPath();
  pen.moveTo(...last || point);
  pen.lineTo(...point);  // to where it already is: a dot
  pen.stroke();
  last = point;
  onPad = "drawing";
  clearTimeout(waiting);
  waiting = setTimeout(look, 60);  // when the pen rests
}

pad.onpointerdown = (event) => {
  if (!data.white_on_black || !event.isPrimary || event.button > 0) return;
  if (onPad === "picture") clearPad();
  pad.setPointerCapture(event.pointerId);  // a line may leave the pad and come back
  drawTo(event);
};
pad.onpointermove = (event) => { if (last && event.isPrimary) drawTo(event); };
pad.onlostpointercapture = () => { last = null; };
document.onpaste = (event) => openPicture(event, event.clipboardData);
document.ondrop = (event) => openPicture(event, event.dataTransfer);
document.ondragover = (event) => event.preventDefault();

// ---------- The answer ----------
// The image is prepared first, the network runs a moment later: so the pen need not wait for both.
function look() {
  const [image, remark] = prepare();
  paint(element("seen"), image ?? makeMaps(HEIGHT, WIDTH, () => [0]));
  clearTimeout(waiting);
  if (image) waiting = setTimeout(() => showAnswer(recognize(image), remark), 0);
  else showAnswer({probabilities: names.map(() => 0), stages: []}, "");
}

function showAnswer({probabilities, stages}, remark) {
  const percent = (share) => `${(100 * share).toFixed(1)}%`;
  const share = largest(probabilities);
  const doubt = share < 0.5 ? ", so it may well be wrong" : "";
  const answer = share ? names[probabilities.indexOf(share)] : "–";
  const sure = share ? `${percent(share)} sure${remark || doubt}` : "nothing to see yet";
  element("answer").textContent = answer;
  element("sure").textContent = sure;
  clearTimeout(hearing);
  hearing = setTimeout(() => { element("spoken").textContent = `${answer}, ${sure}`; }, 1000);
  const order = range(names.length);  // up to 10 classes keep their places
  if (names.length > 10) order.sort((a, b) => probabilities[b] - probabilities[a]);
  element("bars").replaceChildren(...order.slice(0, 10).map((i) => {
    const row = make("li");
    const bar = Object.assign(make("meter"), {value: probabilities[i], ariaLabel: names[i]});
    row.append(names[i], bar, percent(probabilities[i]));  // as text, never as HTML
    return row;
  }));
  element("stages").replaceChildren(...(element("inside").open ? stages.map(drawStage) : []));
}

// Shows maps of one channel (grey) or three (red, green, blue), 0 to 255, on a canvas.
function paint(canvas, maps) {
  [canvas.width, canvas.height] = [maps[0].length, maps.length];
  const pixels = maps.flat().flatMap(([red, green = red, blue = red]) => [red, green, blue, 255]);
  const shown = new ImageData(new Uint8ClampedArray(pixels), canvas.width);
  canvas.getContext("2d").putImageData(shown, 0, 0);
  return canvas;
}

// Up to 64 maps of a stage, each as a tile: the square root makes small numbers visible.
function drawStage(x) {
  const most = Math.max(1e-9, largest(x.flat().map(largest)));
  const tiles = range(Math.min(64, x[0][0].length)).map(
    (k) => paint(make("canvas"), change(x, (pixel) => [255 * Math.sqrt(pixel[k] / most)])));
  const row = make("p");
  row.append(`${x[0][0].length} maps of ${x[0].length} x ${x.length}`, make("br"), ...tiles);
  return row;
}

document.title = `Try it: ${data.title}`;
element("title").textContent = document.title;
element("about").textContent = `${data.parameters.toLocaleString("en")} weights, all in this file.`;
element("alarm").hidden = isAsTrained();
clearPad();
</script>
"""


# %% The program starts here
if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # "?" for what the console can't print
    # In the cells of a notebook, the command line is its kernel's, not ours.
    is_ours = pathlib.Path(sys.argv[0]).name == pathlib.Path(globals().get("__file__", "-")).name
    try:
        main(sys.argv[1:] if is_ours else [])
    except KeyboardInterrupt:
        stop("ended by Ctrl-C. If an epoch was finished, add --resume to the command to go on.")
    except OSError as error:
        stop(f"{error}. Is there room on the disk, do you have write permission, or is the file "
             "open in another program? If an epoch was finished, add --resume to the command to "
             "go on.")
