"""Image captioning: the model that the kernels exist for, its training, and its data."""

from fastrnn.captioning.build import BuildSummary, build_coco_data, tokenize
from fastrnn.captioning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastrnn.captioning.data import load_coco_data, sample_coco_minibatch, save_coco_data
from fastrnn.captioning.decoding import Decoded, beam_search, decode_captions, greedy, sample
from fastrnn.captioning.metrics import bleu, exact_match, perplexity
from fastrnn.captioning.model import CaptioningRNN
from fastrnn.captioning.numbers import load_numbers
from fastrnn.captioning.parallel import Processes, ProcessLost, Reducer
from fastrnn.captioning.pictures import contact_sheet, loss_curve
from fastrnn.captioning.solver import CaptioningSolver, CaptioningTrainer
from fastrnn.captioning.stream import Batch, CaptionData
from fastrnn.captioning.synthetic import synthetic_coco_data
from fastrnn.captioning.training import Summary, Trainer, TrainingConfig

__all__ = [
    "Batch",
    "BuildSummary",
    "CaptionData",
    "CaptioningRNN",
    "CaptioningSolver",
    "CaptioningTrainer",
    "Checkpoint",
    "Decoded",
    "ProcessLost",
    "Processes",
    "Reducer",
    "Summary",
    "Trainer",
    "TrainingConfig",
    "beam_search",
    "bleu",
    "build_coco_data",
    "contact_sheet",
    "decode_captions",
    "exact_match",
    "greedy",
    "load_checkpoint",
    "load_coco_data",
    "load_numbers",
    "loss_curve",
    "perplexity",
    "sample",
    "sample_coco_minibatch",
    "save_checkpoint",
    "save_coco_data",
    "synthetic_coco_data",
    "tokenize",
]
