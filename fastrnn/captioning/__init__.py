"""Image captioning: the model that the kernels exist for, its training, and its data."""

from fastrnn.captioning.data import load_coco_data, sample_coco_minibatch, save_coco_data
from fastrnn.captioning.decoding import decode_captions
from fastrnn.captioning.metrics import exact_match
from fastrnn.captioning.model import CaptioningRNN
from fastrnn.captioning.numbers import load_numbers
from fastrnn.captioning.solver import CaptioningSolver, CaptioningTrainer
from fastrnn.captioning.stream import Batch, CaptionData

__all__ = [
    "Batch",
    "CaptionData",
    "CaptioningRNN",
    "CaptioningSolver",
    "CaptioningTrainer",
    "decode_captions",
    "exact_match",
    "load_coco_data",
    "load_numbers",
    "sample_coco_minibatch",
    "save_coco_data",
]
