"""Image captioning: the model that the kernels exist for, its training, and its data."""

from fastrnn.captioning.build import BuildSummary, build_coco_data, tokenize
from fastrnn.captioning.data import load_coco_data, sample_coco_minibatch, save_coco_data
from fastrnn.captioning.decoding import decode_captions
from fastrnn.captioning.metrics import exact_match
from fastrnn.captioning.model import CaptioningRNN
from fastrnn.captioning.numbers import load_numbers
from fastrnn.captioning.solver import CaptioningSolver, CaptioningTrainer
from fastrnn.captioning.stream import Batch, CaptionData
from fastrnn.captioning.synthetic import synthetic_coco_data

__all__ = [
    "Batch",
    "BuildSummary",
    "CaptionData",
    "CaptioningRNN",
    "CaptioningSolver",
    "CaptioningTrainer",
    "build_coco_data",
    "decode_captions",
    "exact_match",
    "load_coco_data",
    "load_numbers",
    "sample_coco_minibatch",
    "save_coco_data",
    "synthetic_coco_data",
    "tokenize",
]
