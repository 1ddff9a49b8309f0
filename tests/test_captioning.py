"""The captioning model, its solver, its files, and the handwritten numbers."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from harness import BACKENDS, complains

import fastrnn
from fastrnn import optim, runs
from fastrnn.captioning import (
    CaptioningRNN,
    CaptioningSolver,
    CaptioningTrainer,
    decode_captions,
    exact_match,
    load_coco_data,
    load_numbers,
    numbers,
    sample_coco_minibatch,
    save_coco_data,
)

h5py = pytest.importorskip("h5py")

WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3, "dog": 4}
GAP = {"<NULL>": 0, "cat": 2, "dog": 3}
CELLS = ("rnn", "lstm", "gru")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_cell = pytest.mark.parametrize("cell", CELLS)


def small(cell="lstm", dtype=np.float64, words=WORDS, seed=0):
    """A model of D = 4, W = 3, H = 5 with all parameters, biases too, away from zero."""
    rng = np.random.default_rng(seed)
    model = CaptioningRNN(words, 4, 3, 5, cell, dtype, rng=rng)
    for name, value in model.params.items():
        model.params[name] = rng.uniform(-0.8, 0.8, value.shape).astype(dtype)
    return model


def batch(count=6, length=5, seed=1):
    """Features and captions, among them captions of several lengths and NULL inputs."""
    rng = np.random.default_rng(seed)
    captions = rng.integers(1, len(WORDS), size=(count, length))
    for n in range(count):
        captions[n, length - n % 3 :] = 0
    return rng.standard_normal((count, 4)), captions


# ---- the model -------------------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize(
    ("cell", "low", "high", "published"), [("rnn", -1.5, 0.3, 9.83235591003), ("lstm", -0.5, 1.7, 9.82445935443)]
)
def test_published_loss(backend, cell, low, high, published):
    N, D, W, H, T = 10, 20, 30, 40, 13
    model = CaptioningRNN(GAP, input_dim=D, wordvec_dim=W, hidden_dim=H, cell_type=cell, dtype=np.float64)
    for name, value in model.params.items():
        model.params[name] = np.linspace(-1.4, 1.3, num=value.size).reshape(value.shape)
    features = np.linspace(low, high, num=N * D).reshape(N, D)
    with fastrnn.backend(backend):
        loss, _ = model.loss(features, (np.arange(N * T) % 3).reshape(N, T))
    assert abs(loss - published) <= 1e-10


@each_backend
@each_cell
def test_gradients_are_the_loss_differentiated(backend, cell):
    model = small(cell)
    features, captions = batch()
    with fastrnn.backend(backend):
        _, grads = model.loss(features, captions)
        assert list(grads) == list(model.params)
        for name, value in model.params.items():
            numeric = np.empty_like(value)
            for index in np.ndindex(value.shape):
                before, sides = value[index], []
                for step in (1e-5, -1e-5):
                    value[index] = before + step
                    sides.append(model.loss(features, captions)[0])
                value[index] = before
                numeric[index] = (sides[0] - sides[1]) / 2e-5
            np.testing.assert_allclose(grads[name], numeric, rtol=1e-6, atol=1e-8, err_msg=name)


@each_backend
@each_cell
def test_float32_stays_float32(backend, cell):
    model = small(cell, np.float32)
    features, captions = batch()
    shapes = {name: value.shape for name, value in model.params.items()}
    data = dict(as_data(features, captions), train_features=features)  # float64 features
    assert data["train_features"].dtype == np.float64
    with fastrnn.backend(backend):
        for rule in ("sgd", "sgd_momentum", "rmsprop", "adam"):
            # A NumPy float64 scalar promotes float32 arrays under NumPy 2.
            solver = CaptioningSolver(model, data, rule, {"learning_rate": np.float64(1e-3)}, 0.9, 4, verbose=False)
            solver.train(2)
        loss, grads = model.loss(features, captions)
    assert loss.dtype == np.float32 if isinstance(loss, np.generic) else isinstance(loss, float)
    for values in (model.params, grads):
        assert {name: value.shape for name, value in values.items()} == shapes
        assert {value.dtype for value in values.values()} == {np.dtype(np.float32)}


def test_gradients_follow_the_dtype_of_each_parameter():
    model = small(dtype=np.float32)
    model.params["Wh"] = model.params["Wh"].astype(np.float64)
    _, grads = model.loss(*batch())
    assert {name: grad.dtype for name, grad in grads.items()} == {n: v.dtype for n, v in model.params.items()}


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("lstm", 4), ("gru", 3)])
@pytest.mark.parametrize("seeded", ["global", "generator"])
def test_initial_parameters(cell, gates, seeded):
    V, D, W, H = 5, 7, 6, 4
    if seeded == "global":
        draw, options = np.random.RandomState(3).randn, {}
        np.random.seed(3)
    else:
        stream = np.random.default_rng(3)
        draw, options = (lambda *shape: stream.standard_normal(shape)), {"rng": np.random.default_rng(3)}
        np.random.seed(4)
    expected = {
        "W_embed": draw(V, W) / 100,
        "W_proj": draw(D, H) / np.sqrt(D),
        "Wx": draw(W, gates * H) / np.sqrt(W),
        "Wh": draw(H, gates * H) / np.sqrt(H),
        "W_vocab": draw(H, V) / np.sqrt(H),
        "b_proj": np.zeros(H),
        "b": np.zeros(gates * H),
        "b_vocab": np.zeros(V),
    }
    model = CaptioningRNN(WORDS, input_dim=D, wordvec_dim=W, hidden_dim=H, cell_type=cell, **options)
    assert set(model.params) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(model.params[name], value.astype(np.float32), err_msg=name)
        assert model.params[name].dtype == np.float32
    if seeded == "generator":
        assert np.random.rand() == np.random.RandomState(4).rand()  # the global generator was left alone


def test_null_targets_do_not_count():
    model = small()
    features, captions = batch()
    loss, grads = model.loss(features, captions)
    longer = np.concatenate([captions, np.zeros((len(captions), 3), int)], axis=1)
    padded_loss, padded_grads = model.loss(features, longer)
    assert padded_loss == pytest.approx(loss, rel=1e-12)
    for name, grad in grads.items():
        np.testing.assert_allclose(padded_grads[name], grad, rtol=1e-9, atol=1e-12, err_msg=name)
    # A word less counts, or the above would hold for a loss that ignores captions.
    captions[0, -1] = 0
    assert model.loss(features, captions)[0] < loss


def test_captions_of_one_word_have_no_loss():
    features, captions = batch()
    loss, grads = small().loss(features, captions[:, :1])
    assert loss == 0
    assert all(not grad.any() for grad in grads.values())


@each_backend
@each_cell
def test_sample_is_greedy(backend, cell):
    model = small(cell)
    model.params["W_vocab"] *= 10  # or b_vocab decides, and every word is the same
    features, _ = batch()
    with fastrnn.backend(backend):
        sampled = model.sample(features, max_length=7)
        assert sampled.shape == (6, 7) and sampled.dtype == np.int32
        # The most likely next word after all words before it, from the whole-sequence functions.
        params = model.params
        forward = {"rnn": fastrnn.rnn_forward, "lstm": fastrnn.lstm_forward, "gru": fastrnn.gru_forward}[cell]
        read = np.column_stack([np.full(6, WORDS["<START>"]), sampled[:, :-1]])
        h, _ = forward(
            params["W_embed"][read],
            features @ params["W_proj"] + params["b_proj"],
            params["Wx"],
            params["Wh"],
            params["b"],
        )
        np.testing.assert_array_equal(sampled, (h @ params["W_vocab"] + params["b_vocab"]).argmax(axis=2))
        assert len(np.unique(sampled)) > 1
        assert model.sample(features).shape == (6, 30)


def test_vocabulary_with_gaps_and_without_start():
    model = small(words=GAP)
    assert model.params["W_embed"].shape == (3, 3) and model.params["W_vocab"].shape == (5, 3)
    assert model.idx_to_word == {0: "<NULL>", 2: "cat", 3: "dog"}
    features, _ = batch()
    model.loss(features, np.tile([1, 2, 0, 0], (6, 1)))
    with complains(ValueError, "CaptioningRNN.sample", "<START>"):
        model.sample(features)


def test_inputs_are_left_alone_and_odd_layouts_work():
    model = small()
    features, captions = batch()
    loss, grads = model.loss(features, captions)
    wide = np.zeros((12, 8))
    wide[::2, ::2] = features
    words = np.asfortranarray(captions.astype(">i4"))
    for array in (wide, words, *model.params.values()):
        array.flags.writeable = False
    strided_loss, strided_grads = model.loss(wide[::2, ::2], words)
    assert strided_loss == loss
    for name, grad in grads.items():
        np.testing.assert_array_equal(strided_grads[name], grad, err_msg=name)
    np.testing.assert_array_equal(model.sample(wide[::2, ::2]), model.sample(features))
    model.loss(features.tolist(), captions.tolist())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"features": np.zeros(4)}, ValueError, ("features", "2-dimensional", "(4,)")),
        ({"features": np.zeros((6, 5))}, ValueError, ("features", "D", "(6, 5)")),
        ({"features": np.zeros((6, 4), complex)}, TypeError, ("features", "complex128")),
        ({"features": np.zeros((6, 4), object)}, TypeError, ("features", "object")),
        ({"captions": np.ones((5, 5), int)}, ValueError, ("captions", "(5, 5)", "N from features")),
        ({"captions": np.ones(6, int)}, ValueError, ("captions", "2-dimensional", "(6,)")),
        ({"captions": np.ones((6, 0), int)}, ValueError, ("captions", "(6, 0)")),
        ({"captions": np.ones((6, 5))}, TypeError, ("captions", "integers", "float64")),
        ({"captions": np.full((6, 5), np.nan)}, TypeError, ("captions", "integers")),
        ({"captions": np.full((6, 5), 5)}, IndexError, ("captions", "5 words", "5 at position (0, 0)")),
        ({"captions": np.full((6, 5), -1)}, IndexError, ("captions", "-1 at position (0, 0)")),
    ],
)
def test_bad_arguments_of_loss(change, error, words):
    features, captions = batch()
    arguments = {"features": features, "captions": captions} | change
    with complains(error, "CaptioningRNN.loss", *words):
        small().loss(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"word_to_idx": ["<NULL>"]}, TypeError, ("word_to_idx", "list")),
        ({"word_to_idx": {"cat": 0}}, ValueError, ("word_to_idx", "<NULL>")),
        ({"input_dim": 0}, ValueError, ("input_dim", "at least 1", "0")),
        ({"wordvec_dim": 2.5}, TypeError, ("wordvec_dim", "float")),
        ({"hidden_dim": True}, TypeError, ("hidden_dim", "bool")),
        ({"cell_type": "LSTM"}, ValueError, ("cell_type", "'lstm'", "'LSTM'")),
        ({"dtype": np.int32}, TypeError, ("dtype", "float32", "int32")),
        ({"rng": 3}, TypeError, ("rng", "Generator", "int")),
    ],
)
def test_bad_arguments_of_the_model(change, error, words):
    with complains(error, "CaptioningRNN", *words):
        CaptioningRNN(**({"word_to_idx": WORDS} | change))


def test_bad_arguments_of_sample():
    features, _ = batch()
    with complains(ValueError, "CaptioningRNN.sample", "max_length", "0"):
        small().sample(features, 0)
    with complains(ValueError, "CaptioningRNN.sample", "features", "(6, 2)"):
        small().sample(features[:, :2])


# ---- decoding and scoring --------------------------------------------------------------------------------------------


def test_decode_captions():
    words = list(WORDS)
    assert decode_captions(np.array([1, 3, 0, 4, 2, 4]), words) == "<START> cat dog <END>"
    assert decode_captions(np.array([[3, 0], [2, 3]], np.uint8), words) == ["cat", "<END>"]
    assert decode_captions([[4]], words) == ["dog"]
    assert decode_captions(np.zeros((0, 3), int), words) == []
    assert decode_captions(np.array([0, 0]), words) == ""
    assert decode_captions([2, 3], {2: "cat", 3: "dog"}) == "cat dog"


@pytest.mark.parametrize(
    ("captions", "words", "error", "said"),
    [
        ([[1.0]], list(WORDS), TypeError, ("captions", "integers", "float64")),
        (3, list(WORDS), ValueError, ("captions", "(T,) or (N, T)", "()")),
        (np.zeros((1, 1, 1), int), list(WORDS), ValueError, ("captions", "(1, 1, 1)")),
        ([[0, 5]], list(WORDS), IndexError, ("captions", "5 at position (0, 1)")),
        ([-1], list(WORDS), IndexError, ("captions", "-1 at position 0")),
        ([1], {2: "cat"}, IndexError, ("captions", "1")),
    ],
)
def test_decode_captions_refuses(captions, words, error, said):
    with complains(error, "decode_captions", *said):
        decode_captions(captions, words)


def test_exact_match():
    sampled = np.array([[3, 4, 2, 3], [3, 4, 2, 0], [3, 3, 2, 2], [3, 4, 4, 2], [3, 4, 3, 3]])
    truth = np.array([[1, 3, 4, 2, 0]] * 5)
    np.testing.assert_array_equal(exact_match(sampled, truth, WORDS), [True, True, False, False, False])
    assert exact_match(sampled, truth, WORDS).dtype == bool
    with complains(ValueError, "exact_match", "captions", "(4, 5)"):
        exact_match(sampled, truth[:4], WORDS)
    with complains(TypeError, "exact_match", "sampled", "float64"):
        exact_match(sampled + 0.5, truth, WORDS)


# ---- the solver ------------------------------------------------------------------------------------------------------


def as_data(features, captions, words=WORDS):
    """A data set of which both splits are the same."""
    data = {"word_to_idx": dict(words), "idx_to_word": list(words)}
    for split in ("train", "val"):
        data[f"{split}_captions"] = captions.astype(np.int32)
        data[f"{split}_image_idxs"] = np.arange(len(captions), dtype=np.int32)
        data[f"{split}_features"] = features.astype(np.float32)
        data[f"{split}_urls"] = np.array([f"image://{n}" for n in range(len(captions))])
    return data


@pytest.fixture(scope="module")
def numbers_cache(tmp_path_factory):
    pytest.importorskip("sklearn")
    cache = tmp_path_factory.mktemp("cache")
    load_numbers(cache)
    return cache


@each_backend
@each_cell
def test_fifty_captions_are_learned_by_heart(backend, cell, numbers_cache):
    np.random.seed(231)
    data = load_numbers(numbers_cache, max_train=50)
    model = CaptioningRNN(data["word_to_idx"], 192, wordvec_dim=64, hidden_dim=128, cell_type=cell)
    with fastrnn.backend(backend):
        solver = CaptioningSolver(
            model,
            data,
            update_rule="adam",
            num_epochs=100,
            batch_size=25,
            optim_config={"learning_rate": 5e-3},
            lr_decay=0.995,
            verbose=False,
        )
        solver.train()
        assert len(solver.loss_history) == 200
        assert solver.loss_history[0] > 15
        assert np.mean(solver.loss_history[-10:]) < 0.3
        captions, features, _ = sample_coco_minibatch(data, 40)
        assert exact_match(model.sample(features, 6), captions, data["word_to_idx"]).mean() > 0.9


def test_solver_draws_and_updates_as_its_parts_do():
    """The solver against the same thing written out."""
    data = as_data(*batch(20))
    options = {"learning_rate": 1e-2, "beta1": 0.8}
    model = small()
    np.random.seed(5)
    solver = CaptioningSolver(model, data, "adam", options, 0.5, 6, num_epochs=2, verbose=False)
    solver.train()
    assert options == {"learning_rate": 1e-2, "beta1": 0.8}

    twin = small()
    np.random.seed(5)
    configs = {name: dict(options) for name in twin.params}
    losses = []
    for iteration in range(6):  # 20 captions are 3 minibatches of 6
        drawn = np.random.choice(20, 6)
        loss, grads = twin.loss(data["train_features"][drawn], data["train_captions"][drawn])
        losses.append(loss)
        for name in twin.params:
            twin.params[name], _ = optim.adam(twin.params[name], grads[name], configs[name])
            if iteration % 3 == 2:
                configs[name]["learning_rate"] *= 0.5
    assert solver.loss_history == losses
    assert solver.epoch == 2
    assert solver.optim_configs["Wx"]["learning_rate"] == 1e-2 / 4
    for name, value in twin.params.items():
        np.testing.assert_array_equal(model.params[name], value, err_msg=name)


def test_solver_with_a_generator_leaves_the_global_one_alone():
    data = as_data(*batch(20))
    histories = []
    for seed in (1, 1, 2):
        np.random.seed(9)
        solver = CaptioningSolver(small(), data, batch_size=5, verbose=False, rng=np.random.default_rng(seed))
        solver.train(3)
        assert np.random.rand() == np.random.RandomState(9).rand()
        histories.append(solver.loss_history)
    assert histories[0] == histories[1] != histories[2]


def test_trainer_is_the_solver_by_another_name():
    data = as_data(*batch(20))
    histories = []
    for options in ({"updater_config": {"learning_rate": 0.5}}, {"optim_config": {"learning_rate": 0.5}}, {}):
        np.random.seed(0)
        trainer = CaptioningTrainer(small(), data, update_rule="sgd", batch_size=5, verbose=False, **options)
        trainer.train(4)
        histories.append(trainer.loss_history)
    assert histories[0] == histories[1] != histories[2]
    with complains(TypeError, "CaptioningSolver", "updater_config", "optim_config"):
        CaptioningTrainer(small(), data, optim_config={}, updater_config={})


def test_update_rules_differ():
    data = as_data(*batch(20))
    histories = []
    for rule in ("sgd", "sgd_momentum", "rmsprop", "adam"):
        np.random.seed(0)
        solver = CaptioningSolver(small(), data, rule, {"learning_rate": 1e-2}, batch_size=5, verbose=False)
        solver.train(4)
        histories.append(tuple(solver.loss_history))
    assert len(set(histories)) == 4


def test_solver_prints_and_calls_back(capsys):
    data = as_data(*batch(20))
    calls = []
    solver = CaptioningSolver(
        small(), data, batch_size=10, num_epochs=3, print_every=4, callback=lambda *call: calls.append(call)
    )
    solver.train()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" loss: ")[0] for line in lines] == ["(Iteration 1 / 6)", "(Iteration 5 / 6)"]
    assert float(lines[1].split(" loss: ")[1]) == pytest.approx(solver.loss_history[4], abs=1e-6)
    assert calls == [(n + 1, 6, loss) for n, loss in enumerate(solver.loss_history)]
    solver.verbose = False
    solver.train(2)
    assert capsys.readouterr().out == "" and len(solver.loss_history) == 8 and solver.epoch == 4


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"update_rule": "nesterov"}, ValueError, ("update_rule", "'adam'", "'nesterov'")),
        ({"update_rule": "Any"}, ValueError, ("update_rule", "'Any'")),
        ({"batch_size": 0}, ValueError, ("batch_size", "0")),
        ({"num_epochs": 1.5}, TypeError, ("num_epochs", "float")),
        ({"print_every": 0}, ValueError, ("print_every", "0")),
        ({"lr_decay": "fast"}, TypeError, ("lr_decay",)),
        ({"optim_config": 1e-3}, TypeError, ("optim_config", "float")),
        ({"updater_config": 1e-3}, TypeError, ("updater_config", "float")),
        ({"data": {}}, ValueError, ("data", "train_captions")),
        ({"rng": np.random}, TypeError, ("rng", "module")),
    ],
)
def test_bad_arguments_of_the_solver(change, error, words):
    with complains(error, "CaptioningSolver", *words):
        CaptioningSolver(**({"model": small(), "data": as_data(*batch())} | change))
    with complains(ValueError, "CaptioningSolver.train", "num_iterations"):
        CaptioningSolver(small(), as_data(*batch())).train(0)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path):
    """A folder with a data set of 12 training and 5 validation captions of 8 and 4 images."""
    rng = np.random.default_rng(0)
    data = {"word_to_idx": dict(WORDS), "idx_to_word": list(WORDS)}
    for split, count, images in (("train", 12, 8), ("val", 5, 4)):
        data[f"{split}_captions"] = rng.integers(0, 5, size=(count, 6)).astype(np.int32)
        data[f"{split}_image_idxs"] = rng.integers(0, images, size=count).astype(np.int32)
        data[f"{split}_features"] = rng.standard_normal((images, 7)).astype(np.float32)
        data[f"{split}_urls"] = np.array([f"http://{split}/{n}.jpg" for n in range(images)])
    save_coco_data(tmp_path, data)
    return tmp_path, data


def assert_same_data(got, expected):
    assert set(got) == set(expected)
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(got[name], value, err_msg=name)
            assert got[name].dtype == value.dtype
        else:
            assert got[name] == value


def test_files_come_back_as_written(coco):
    folder, data = coco
    assert sorted(path.name for path in folder.iterdir()) == [
        "coco2014_captions.h5",
        "coco2014_vocab.json",
        "train2014_urls.txt",
        "train2014_vgg16_fc7_pca.h5",
        "val2014_urls.txt",
        "val2014_vgg16_fc7_pca.h5",
    ]
    assert_same_data(load_coco_data(str(folder)), data)
    wide = data | {f"{split}_features": np.tile(data[f"{split}_features"], 2) for split in ("train", "val")}
    save_coco_data(folder, wide, pca_features=False)
    assert_same_data(load_coco_data(folder, pca_features=False), wide)
    assert_same_data(load_coco_data(folder), data)


def test_max_train_draws_with_replacement(coco):
    folder, data = coco
    np.random.seed(7)
    some = load_coco_data(folder, max_train=9)
    kept = np.random.RandomState(7).randint(12, size=9)
    expected = data | {name: data[name][kept] for name in ("train_captions", "train_image_idxs")}
    assert_same_data(some, expected)
    kept = np.random.default_rng(7).integers(12, size=9)
    some = load_coco_data(folder, 9, rng=np.random.default_rng(7))
    np.testing.assert_array_equal(some["train_captions"], data["train_captions"][kept])


@pytest.mark.parametrize("split", ["train", "val"])
def test_minibatches(coco, split):
    _, data = coco
    for drawn, options in (
        (np.random.RandomState(8).choice(len(data[f"{split}_captions"]), 20), {}),
        (np.random.default_rng(8).choice(len(data[f"{split}_captions"]), 20), {"rng": np.random.default_rng(8)}),
    ):
        np.random.seed(8)
        captions, features, urls = sample_coco_minibatch(data, batch_size=20, split=split, **options)
        images = data[f"{split}_image_idxs"][drawn]
        np.testing.assert_array_equal(captions, data[f"{split}_captions"][drawn])
        np.testing.assert_array_equal(features, data[f"{split}_features"][images])
        np.testing.assert_array_equal(urls, data[f"{split}_urls"][images])
    assert len(sample_coco_minibatch(data)[0]) == 100


def test_bad_arguments_of_minibatches(coco):
    _, data = coco
    with complains(ValueError, "sample_coco_minibatch", "split", "'test'"):
        sample_coco_minibatch(data, 2, "test")
    with complains(ValueError, "sample_coco_minibatch", "batch_size", "0"):
        sample_coco_minibatch(data, 0)
    with complains(ValueError, "sample_coco_minibatch", "val_urls"):
        sample_coco_minibatch({name: value for name, value in data.items() if name != "val_urls"}, 2, "val")
    with complains(ValueError, "sample_coco_minibatch", "train_captions"):
        sample_coco_minibatch(data | {"train_captions": data["train_captions"][:0]}, 2)
    folder, _ = coco
    with complains(ValueError, "load_coco_data", "max_train", "-1"):
        load_coco_data(folder, max_train=-1)


CAPTIONS = "coco2014_captions.h5"
FEATURES = "val2014_vgg16_fc7_pca.h5"
VOCABULARY = "coco2014_vocab.json"


def _without(path, name):
    with h5py.File(path, "a") as file:
        del file[name]


def _instead(path, name, value):
    with h5py.File(path, "a") as file:
        del file[name]
        if value is None:
            file.create_group(name)
        else:
            file[name] = value


def _at(path, name, position, value):
    with h5py.File(path, "a") as file:
        file[name][position] = value


@pytest.mark.parametrize(
    ("name", "spoil", "error", "said"),
    [
        (CAPTIONS, lambda p: p.unlink(), FileNotFoundError, ("HDF5", "nothing")),
        (FEATURES, lambda p: (p.unlink(), p.mkdir()), FileNotFoundError, ("HDF5", "a folder")),
        (FEATURES, lambda p: p.write_bytes(p.read_bytes()[:-10]), ValueError, ("HDF5", "truncated")),
        (FEATURES, lambda p: p.write_bytes(b""), ValueError, ("HDF5", "0 bytes")),
        (CAPTIONS, lambda p: p.write_text("<html>not found</html>"), ValueError, ("HDF5", "another kind", "22 bytes")),
        (
            CAPTIONS,
            lambda p: _without(p, "val_captions"),
            ValueError,
            ("dataset 'val_captions'", "integers of shape (num_captions, T)", "train_captions, train_image_idxs"),
        ),
        (
            CAPTIONS,
            lambda p: _instead(p, "val_image_idxs", None),
            ValueError,
            ("dataset 'val_image_idxs'", "integers of shape (num_captions,)", "group"),
        ),
        (
            CAPTIONS,
            lambda p: _instead(p, "train_captions", np.zeros((12, 6))),
            ValueError,
            ("dataset 'train_captions'", "integers", "float64 of shape (12, 6)"),
        ),
        (
            CAPTIONS,
            lambda p: _instead(p, "train_captions", np.zeros(12, int)),
            ValueError,
            ("dataset 'train_captions'", "(num_captions, T)", "int64 of shape (12,)"),
        ),
        (
            CAPTIONS,
            lambda p: _instead(p, "train_image_idxs", np.zeros(11, int)),
            ValueError,
            ("dataset 'train_image_idxs'", "one image per caption", "11 for 12"),
        ),
        (
            FEATURES,
            lambda p: _instead(p, "features", np.zeros((4, 7), int)),
            ValueError,
            ("dataset 'features'", "floating-point", "int64 of shape (4, 7)"),
        ),
        (
            FEATURES,
            lambda p: _instead(p, "features", np.zeros((4, 7, 1))),
            ValueError,
            ("dataset 'features'", "(num_images, D)", "(4, 7, 1)"),
        ),
        (
            FEATURES,
            lambda p: _instead(p, "features", np.zeros((4, 6))),
            ValueError,
            ("dataset 'features'", "rows of 7 numbers", "got 6"),
        ),
        (
            CAPTIONS,
            lambda p: _at(p, "train_captions", (3, 2), 5),
            ValueError,
            ("dataset 'train_captions'", "0..4", VOCABULARY, "5 at [3, 2]"),
        ),
        (
            CAPTIONS,
            lambda p: _at(p, "val_captions", (0, 1), -1),
            ValueError,
            ("dataset 'val_captions'", "-1 at [0, 1]"),
        ),
        (
            CAPTIONS,
            lambda p: _at(p, "val_image_idxs", 2, 4),
            ValueError,
            ("dataset 'val_image_idxs'", "0..3", FEATURES, "4 at [2]"),
        ),
        (VOCABULARY, lambda p: p.write_text('{"idx_to_word": ['), ValueError, ("JSON", "line 1")),
        (VOCABULARY, lambda p: p.write_bytes(b"\xff\xfe\x00"), ValueError, ("JSON", "UTF-8")),
        (VOCABULARY, lambda p: p.write_text("[1, 2]"), ValueError, ("'idx_to_word'", "list of words")),
        (VOCABULARY, lambda p: p.write_text('{"idx_to_word": ["a"]}'), ValueError, ("'word_to_idx'",)),
        (
            VOCABULARY,
            lambda p: p.write_text(json.dumps({"idx_to_word": ["a", "b"], "word_to_idx": {"b": 0}})),
            ValueError,
            ("inverse", "'b'", "0"),
        ),
        (VOCABULARY, lambda p: p.unlink(), FileNotFoundError, ("JSON", "nothing")),
    ],
)
def test_bad_files(coco, name, spoil, error, said):
    folder, _ = coco
    spoil(folder / name)
    with complains(error, "load_coco_data", str(folder / name), *said):
        load_coco_data(folder)


def test_too_few_urls(coco):
    folder, data = coco
    few = int(data["train_image_idxs"].max())
    (folder / "train2014_urls.txt").write_text("http://image\n" * few)
    with complains(ValueError, "load_coco_data", "'train_image_idxs'", "train2014_urls.txt", str(few)):
        load_coco_data(folder)


def test_damage_inside_an_hdf5_file(coco):
    """A file of the right size whose compressed data is broken."""
    folder, data = coco
    path = folder / FEATURES
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=data["val_features"], compression="gzip", chunks=(4, 7))
        offset = file["features"].id.get_chunk_info(0).byte_offset
    spoiled = bytearray(path.read_bytes())
    spoiled[offset : offset + 20] = b"\0" * 20
    path.write_bytes(spoiled)
    with complains(ValueError, "load_coco_data", str(path), "dataset 'features'", "damaged"):
        load_coco_data(folder)


# ---- handwritten numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (7, "seven"),
        (10, "ten"),
        (19, "nineteen"),
        (20, "twenty"),
        (42, "forty two"),
        (100, "one hundred"),
        (101, "one hundred and one"),
        (110, "one hundred and ten"),
        (371, "three hundred and seventy one"),
        (900, "nine hundred"),
        (999, "nine hundred and ninety nine"),
    ],
)
def test_number_words(number, words):
    assert numbers.number_words(number) == words


def test_all_numbers_have_words_of_their_own():
    texts = [numbers.number_words(number) for number in range(1000)]
    assert len(set(texts)) == 1000
    assert {word for text in texts for word in text.split()} == set(numbers.IDX_TO_WORD[4:])
    assert max(len(text.split()) for text in texts) == numbers.CAPTION_LENGTH - 2
    for number in (-1, 1000):
        with complains(ValueError, "number_words", str(number)):
            numbers.number_words(number)


def test_numbers_are_composed_of_disjoint_handwriting(numbers_cache):
    from sklearn.datasets import load_digits

    digits = load_digits()
    data = load_numbers(numbers_cache)
    used = {}
    for split, count in (("train", 20_000), ("val", 2_000)):
        features, captions, urls = (data[f"{split}_{name}"] for name in ("features", "captions", "urls"))
        assert features.shape == (count, 192) and features.dtype == np.float32
        assert captions.shape == (count, 7) and captions.dtype == np.int32
        assert features.min() == 0 and features.max() == 1
        sources = np.array(
            [[int(n) for n in re.fullmatch(r"sklearn-digits://(\d+)-(\d+)-(\d+)", u).groups()] for u in urls]
        )
        used[split] = set(sources.ravel().tolist())
        # The picture shows those three images, and the caption says what they show.
        shown = features.reshape(count, 8, 3, 8).transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(shown, (digits.images[sources] / 16).astype(np.float32))
        values = digits.target[sources] @ [100, 10, 1]
        said = decode_captions(captions, data["idx_to_word"])
        assert said == [f"<START> {numbers.number_words(value)} <END>" for value in values.tolist()]
        assert (np.bincount(values, minlength=1000) == count // 1000).all()
    assert not used["train"] & used["val"]
    assert len(used["train"] | used["val"]) > 0.99 * len(digits.images)


def test_distorted_digits():
    """Against SciPy's interpolation of the same points, and without any distortion."""
    from scipy.ndimage import map_coordinates

    features = np.random.default_rng(0).random((6, 192), dtype=np.float32)
    kept = features.copy()
    same = numbers.distort(features, np.random.default_rng(1), 0, 0, 0)
    np.testing.assert_allclose(same, features, atol=1e-6)
    for amounts in ({}, {"shift": 2.5, "turn": 0.0, "stretch": 0.0}, {"shift": 0.0, "turn": 0.8, "stretch": 0.5}):
        got = numbers.distort(features, np.random.default_rng(1), **amounts)
        assert got.shape == features.shape and got.dtype == np.float32
        amounts = {"shift": 0.35, "turn": 0.12, "stretch": 0.08} | amounts
        turned, slant, scale, up, left = np.random.default_rng(1).uniform(-1, 1, (5, 6, 3))
        y, x = np.mgrid[:8, :8] - 3.5
        for n, digit in np.ndindex(6, 3):
            angle = amounts["turn"] * turned[n, digit]
            factor = np.exp(amounts["stretch"] * scale[n, digit])
            rows = factor * (np.cos(angle) * y + np.sin(angle) * x) + amounts["shift"] * up[n, digit]
            columns = factor * (np.cos(angle) * x - np.sin(angle) * y) + amounts["shift"] * left[n, digit]
            columns += amounts["turn"] * slant[n, digit] * y
            image = np.pad(features[n].reshape(8, 3, 8)[:, digit], 2)
            expected = map_coordinates(image, [rows + 5.5, columns + 5.5], order=1)
            np.testing.assert_allclose(got[n].reshape(8, 3, 8)[:, digit], expected, atol=1e-5)
    np.testing.assert_array_equal(features, kept)


def test_numbers_are_written_once_and_again_when_spoiled(numbers_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(numbers, "build_numbers", _few_numbers())
    folder = numbers.numbers_dir(tmp_path)
    captions = folder / CAPTIONS
    written = captions.stat().st_mtime_ns
    assert numbers.numbers_dir(tmp_path) == folder and captions.stat().st_mtime_ns == written

    def stale():
        with h5py.File(captions, "a") as file:
            file.attrs["fastrnn_numbers_version"] -= 1

    for spoil in (
        stale,
        lambda: captions.write_bytes(captions.read_bytes()[:-100]),
        lambda: (folder / FEATURES).write_text("nothing"),
        lambda: (folder / "val2014_urls.txt").unlink(),
    ):
        spoil()
        assert numbers.numbers_dir(tmp_path) == folder
        assert len(load_coco_data(folder)["train_captions"]) == 40
        with h5py.File(captions) as file:
            assert file.attrs["fastrnn_numbers_version"] == numbers.VERSION
    assert [path.name for path in tmp_path.iterdir()] == ["numbers"]  # nothing was left beside it


def _few_numbers():
    few = numbers.build_numbers(40, 10)
    return lambda: few


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        (args[0]).mkdir()
        (args[0] / VOCABULARY).write_text("{")
        raise OSError("no space left on device")

    pytest.importorskip("sklearn")
    monkeypatch.setattr(numbers, "build_numbers", _few_numbers())
    monkeypatch.setattr(numbers, "save_coco_data", fails)
    with pytest.raises(OSError, match="no space"):
        numbers.numbers_dir(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", ["nothing", "stale"])
def test_several_write_the_numbers_at_once(tmp_path, monkeypatch, before):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(numbers, "build_numbers", _few_numbers())
    if before == "stale":
        monkeypatch.setattr(numbers, "VERSION", 0)
        numbers.numbers_dir(tmp_path)
        monkeypatch.undo()
        monkeypatch.setattr(numbers, "build_numbers", _few_numbers())
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(numbers.numbers_dir, [tmp_path] * 4))
    assert set(folders) == {tmp_path / "numbers"}
    assert numbers._is_current(folders[0])
    assert len(load_coco_data(folders[0])["val_captions"]) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["numbers"]


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "here"))
    assert runs.cache_dir() == tmp_path / "here"
    monkeypatch.delenv("FASTRNN_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert runs.cache_dir() == tmp_path / "xdg" / "fastrnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runs.cache_dir() == tmp_path / ".cache" / "fastrnn"
    monkeypatch.setattr("sys.platform", "darwin")
    assert runs.cache_dir() == tmp_path / "Library" / "Caches" / "fastrnn"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert runs.cache_dir() == tmp_path / "local" / "fastrnn"


def test_steps_that_are_left_out_change_nothing():
    """The loss of captions with <NULL> at their end, in their middle and everywhere, against every step being run."""
    rng = np.random.default_rng(3)
    words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "a": 3, "b": 4}
    model = CaptioningRNN(words, input_dim=6, wordvec_dim=5, hidden_dim=7, cell_type="lstm", dtype=np.float64, rng=rng)
    captions = np.array([[1, 3, 4, 2, 0, 0], [1, 3, 0, 4, 2, 0], [1, 0, 0, 0, 0, 0], [1, 3, 4, 3, 4, 2]])
    features = rng.standard_normal((4, 6))
    loss, grads = model.loss(features, captions)
    p = model.params
    h0, first = fastrnn.affine_forward(features, p["W_proj"], p["b_proj"])
    x, looked_up = fastrnn.word_embedding_forward(captions[:, :-1], p["W_embed"])
    h, ran = fastrnn.lstm_forward(x, h0, p["Wx"], p["Wh"], p["b"])
    scores, last = fastrnn.temporal_affine_forward(h, p["W_vocab"], p["b_vocab"])
    want, dscores = fastrnn.temporal_softmax_loss(scores, captions[:, 1:], captions[:, 1:] != 0)
    dh, *vocab = fastrnn.temporal_affine_backward(dscores, last)
    dx, dh0, *cell = fastrnn.lstm_backward(dh, ran)
    _, *projected = fastrnn.affine_backward(dh0, first)
    wanted = [fastrnn.word_embedding_backward(dx, looked_up), *projected, *cell, *vocab]
    assert abs(loss - want) < 1e-12 * want
    for name, value in zip(("W_embed", "W_proj", "b_proj", "Wx", "Wh", "b", "W_vocab", "b_vocab"), wanted, strict=True):
        np.testing.assert_allclose(grads[name], value, rtol=0, atol=1e-13, err_msg=name)


def test_steps_after_the_last_word_are_not_run():
    """They would be seen: the word vector of what fills captions up is no number."""
    words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "a": 3}
    model = CaptioningRNN(words, input_dim=6, wordvec_dim=5, hidden_dim=7, cell_type="lstm", dtype=np.float64)
    model.params["W_embed"][0] = np.nan
    loss, grads = model.loss(np.ones((2, 6)), np.array([[1, 3, 3, 2, 0, 0], [1, 2, 0, 0, 0, 0]]))
    assert np.isfinite(loss)
    assert all(np.isfinite(value).all() for value in grads.values())
