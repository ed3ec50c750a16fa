"""MediaPipe Tasks on a file of ours; run by the Python of an environment that has `mediapipe`.

    python classify_mediapipe.py PICTURES.npy MODEL.tflite [MODEL.tflite ...]

PICTURES is uint8 ``[n, H, W, 3]``, RGB. Prints one JSON list: per model the reason why it is
refused, or for each picture its labels and scores, the best first.
"""

from __future__ import annotations

import json
import sys

import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision


def classify(model: str, pictures: np.ndarray) -> dict:
    options = vision.ImageClassifierOptions(
        base_options=BaseOptions(model_asset_path=model), max_results=-1
    )
    try:
        classifier = vision.ImageClassifier.create_from_options(options)
    # MediaPipe's "not found" is of metadata too.
    except (ValueError, RuntimeError, NotImplementedError, FileNotFoundError) as error:
        return {"refused": str(error)}
    with classifier:
        return {"answers": [answer(classifier, picture) for picture in pictures]}


def answer(classifier: vision.ImageClassifier, picture: np.ndarray) -> list:
    data = np.ascontiguousarray(picture)
    image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=data)
    (head,) = classifier.classify(image).classifications
    return [[one.category_name, float(one.score)] for one in head.categories]


if __name__ == "__main__":
    shown = np.load(sys.argv[1])
    print(json.dumps([classify(model, shown) for model in sys.argv[2:]]))
