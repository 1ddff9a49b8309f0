"""GANs: networks, losses, training that any stop leaves whole, what a classifier reads, and what is refused."""

import gzip
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from full_disk import FullFile, fill, tiny_disk
from harness import complains
from typer.testing import CliRunner

from fastrnn import conformance, runs
from fastrnn.cli import common
from fastrnn.cli.main import app

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

from fastrnn.vision import gan, gan_pictures  # noqa: E402
from fastrnn.vision import gan_training as module  # noqa: E402
from fastrnn.vision.data import digits  # noqa: E402
from fastrnn.vision.gan_training import GANConfig, GANTrainer, judge, load_images  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:fastrnn runs on:RuntimeWarning")

ROOT = Path(__file__).resolve().parents[1]
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
SMALL = {"steps": 12, "batch_size": 4, "sample_every": 5, "save_every": 4, "log_every": 1}


@pytest.fixture(scope="module")
def images():
    return torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(module, "STATISTICS", 100)  # of a thousand, in tests of a second


def trained(images, out=None, **options):
    trainer = GANTrainer(images, GANConfig(**SMALL | options), out=out)
    trainer.train()
    return trainer


def tensors(value, name=""):
    """Every tensor of a checkpoint, as bytes with dtype and shape, and everything else."""
    if isinstance(value, torch.Tensor):
        return {name: (str(value.dtype), tuple(value.shape), value.numpy().tobytes())}
    if isinstance(value, dict):
        found = {}
        for key, entry in value.items():
            found |= tensors(entry, f"{name}.{key}")
        return found
    return {name: value}


def content(run):
    return tensors(torch.load(run / "last.pt", weights_only=True))


def assert_same_run(run, other):
    found, expected = content(run), content(other)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert (run / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    names = sorted(path.name for path in run.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        if name.endswith(".png"):
            assert (run / name).read_bytes() == (other / name).read_bytes()


# ---- networks --------------------------------------------------------------------------------------------------------


def sizes(network, x):
    found = [tuple(x.shape[1:])]
    for layer in network:
        x = layer(x)
        if tuple(x.shape[1:]) != found[-1]:
            found.append(tuple(x.shape[1:]))
    return found


def test_sizes_of_the_networks():
    noise, picture = torch.zeros(2, 96), torch.zeros(2, 1, 28, 28)
    assert sizes(gan.discriminator(), picture) == [(1, 28, 28), (784,), (256,), (1,)]
    assert sizes(gan.generator(), noise) == [(96,), (1024,), (784,)]
    assert sizes(gan.dc_generator(), noise) == [(96,), (1024,), (6272,), (128, 7, 7), (64, 14, 14), (1, 28, 28)]
    assert sizes(gan.dc_discriminator(), picture) == [
        (1, 28, 28), (32, 14, 14), (64, 7, 7), (3136,), (256,), (1,),
    ]  # fmt: skip
    assert gan.discriminator()(torch.zeros(3, 784)).shape == (3, 1)
    slopes = [layer.negative_slope for layer in gan.discriminator() if isinstance(layer, torch.nn.LeakyReLU)]
    assert slopes == [0.01, 0.01]


def test_arguments_of_the_networks():
    assert gan.generator(5)(torch.zeros(2, 5)).shape == (2, 784)
    assert gan.dc_generator(5, channels=6, hidden_dim=7)(torch.zeros(2, 5)).shape == (2, 1, 28, 28)
    assert gan.dc_generator(5, 6, 7)[0].weight.shape == (7, 5)
    assert gan.dc_discriminator(3, hidden_dim=5)[5].weight.shape == (5, 294)
    with torch.no_grad():
        for network in (gan.generator(), gan.dc_generator()):
            assert float(network(50 * gan.sample_noise(8, seed=0)).abs().max()) <= 1
    for call, words in (
        (lambda: gan.generator(0), ("generator: ", "noise_dim", "at least 1", "0")),
        (lambda: gan.dc_generator(channels=5), ("dc_generator: ", "channels", "even", "5")),
        (lambda: gan.dc_generator(hidden_dim=0), ("dc_generator: ", "hidden_dim", "0")),
        (lambda: gan.dc_discriminator(channels=0), ("dc_discriminator: ", "channels", "0")),
    ):
        with complains(ValueError, words[0][:-2], *words):
            call()
    with complains(TypeError, "generator", "noise_dim", "whole number", "float"):
        gan.generator(96.0)


# ---- losses ----------------------------------------------------------------------------------------------------------


def plain(name, *logits):
    """The formulas as they stand in the papers, in the dtype of the logits."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    real, fake = (None, *logits)[-2:]
    return {
        "discriminator_loss": lambda: -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(fake)).mean(),
        "generator_loss": lambda: -np.log(sigmoid(fake)).mean(),
        "ls_discriminator_loss": lambda: ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2,
        "ls_generator_loss": lambda: ((fake - 1) ** 2).mean() / 2,
    }[name]()


LOSSES = {"discriminator_loss": 2, "generator_loss": 1, "ls_discriminator_loss": 2, "ls_generator_loss": 1}


@pytest.mark.parametrize("dtype", conformance.DTYPES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0.1, 3, 8])
def test_losses_are_the_formulas(name, dtype, scale):
    rng = np.random.default_rng(3)
    logits = [(scale * rng.standard_normal((33, 1))).astype(dtype) for _ in range(LOSSES[name])]
    exact = plain(name, *(x.astype(conformance.EXACT[dtype]) for x in logits))
    result = getattr(gan, name)(*map(torch.from_numpy, logits))
    assert result.ndim == 0 and str(result.dtype) == f"torch.{dtype}"
    assert conformance.within(*conformance.error_and_bound(result.numpy(), plain(name, *logits), exact, dtype))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_extreme_logits(name):
    for values in ([1e4, 1e4], [-1e4, -1e4], [1e4, -1e4]):
        logits = [torch.tensor(values, requires_grad=True) for _ in range(LOSSES[name])]
        loss = getattr(gan, name)(*logits)
        loss.backward()
        assert math.isfinite(loss.detach()) and all(bool(torch.isfinite(x.grad).all()) for x in logits)
    far = torch.full((2,), 1e4)
    assert gan.generator_loss(-far) == 1e4 and gan.generator_loss(far) == 0
    assert gan.discriminator_loss(-far, far) == 2e4 and gan.discriminator_loss(far, -far) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_the_losses(name):
    generator = torch.Generator().manual_seed(1)
    logits = [
        (3 * torch.randn(7, 1, dtype=torch.float64, generator=generator)).requires_grad_() for _ in range(LOSSES[name])
    ]
    assert torch.autograd.gradcheck(getattr(gan, name), logits)


@pytest.mark.parametrize("name", LOSSES)
def test_logits_that_are_none(name):
    good = [torch.zeros(3, 1)] * (LOSSES[name] - 1)
    for value, error, words in (
        (np.zeros(3), TypeError, ("'logits_fake'", "Tensor", "ndarray")),
        (torch.zeros(3, dtype=torch.int64), TypeError, ("'logits_fake'", "floating", "int64")),
        (torch.zeros(0, 1), ValueError, ("'logits_fake'", "(0, 1)")),
    ):
        with complains(error, name, *words):
            getattr(gan, name)(*good, value)


def test_noise():
    noise = gan.sample_noise(2000, 50, seed=4)
    assert noise.shape == (2000, 50) and noise.dtype == torch.float32
    assert -1 <= float(noise.min()) < -0.999 and 0.999 < float(noise.max()) < 1
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.var()) - 1 / 3) < 0.01
    assert torch.equal(noise, gan.sample_noise(2000, 50, seed=4))
    assert not torch.equal(noise, gan.sample_noise(2000, 50, seed=5))
    assert torch.equal(gan.sample_noise(2, 3, [1, 2]), gan.sample_noise(2, 3, [1, 2]))
    assert not torch.equal(gan.sample_noise(2, 3), gan.sample_noise(2, 3))
    assert gan.sample_noise(3).shape == (3, 96)
    state = torch.get_rng_state()
    gan.sample_noise(5, 5)
    assert torch.equal(state, torch.get_rng_state())
    for arguments, words in (((0, 5), "'batch_size'"), ((5, 0), "'dim'"), ((5, 5, -1), "'seed'")):
        with complains(ValueError, "sample_noise", words):
            gan.sample_noise(*arguments)


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", module.KINDS)
def test_both_networks_learn(kind):
    """On one picture: the generator soon makes it, which it cannot unless the discriminator learns too."""
    images = digits("train")[0][:1].repeat(8, 1, 1, 1)
    trainer = GANTrainer(images, GANConfig(kind=kind, steps=80, batch_size=8, seed=1))
    before = float((trainer.sample(16) - images[0]).abs().mean())
    trainer.train()
    after = float((trainer.sample(16) - images[0]).abs().mean())
    assert after < 0.5 * before, (before, after)


def test_a_step_by_hand(images):
    """One step of plain PyTorch gives the same parameters."""
    trainer = GANTrainer(images, GANConfig(kind="vanilla", steps=1, batch_size=4, average=0.5, seed=3))
    torch.manual_seed(3)
    generator, discriminator = gan.generator(), gan.discriminator()
    rows = np.random.default_rng([3, 0, module._ROWS]).integers(40, size=4)
    real = 2 * images[rows] - 1
    fake = generator(gan.sample_noise(4, 96, [3, 0, module._NOISE]))
    for network, loss in (
        (discriminator, lambda: gan.discriminator_loss(discriminator(real), discriminator(fake.detach()))),
        (generator, lambda: gan.generator_loss(discriminator(fake))),
    ):
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-4, betas=(0.5, 0.999))
        network.zero_grad()
        loss().backward()
        optimizer.step()
    first = [value.clone() for value in trainer.generator.parameters()]
    trainer.train()
    for ours, expected in zip(trainer.discriminator.parameters(), discriminator.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)  # far less than the step, 5e-4
    decay = 2 / 11
    for ours, mean, old, expected in zip(
        trainer.generator.parameters(), trainer.average.parameters(), first, generator.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(mean, decay * old + (1 - decay) * ours, rtol=0, atol=1e-7)


def test_the_statistics_go_with_the_averaged_parameters(images):
    """However many are drawn, and whatever training left in the batch normalisations."""
    trainer = trained(images)
    shown = trainer.sample(300)
    assert torch.equal(trainer.sample(300), shown)
    torch.testing.assert_close(trainer.sample(7), shown[:7], rtol=0, atol=1e-5)
    assert not torch.equal(trainer.sample(7, seed=1), shown[:7])
    for layer in trainer.average:
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_mean.fill_(100.0)
            layer.num_batches_tracked.fill_(9)
    assert torch.equal(trainer.sample(300), shown)
    sampler = trainer._sampler().train()
    noise = gan.sample_noise(100, 96, [0, 0, module._STATISTICS])
    with torch.no_grad():
        expected = sampler[0](noise).mean(0)
    torch.testing.assert_close(trainer._sampler()[1].running_mean, expected, rtol=0, atol=1e-5)
    assert 0 <= float(shown.min()) and float(shown.max()) <= 1


def test_files_of_a_run(images, tmp_path):
    steps = []
    run = tmp_path / "run"
    trainer = GANTrainer(images, GANConfig(**SMALL, seed=2), out=run, callback=lambda record: steps.append(record))
    summary = trainer.train()
    assert (summary.steps, summary.step, trainer.step) == (12, 12, 12) and summary.seconds > 0
    assert [record["step"] for record in steps] == list(range(1, 13))
    names = ["last.pt", "metrics.jsonl", *(f"samples-{step:06}.png" for step in (0, 5, 10, 12))]
    assert sorted(path.name for path in run.iterdir()) == names
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records == trainer.records and records[-1].keys() == {"step", "discriminator_loss", "generator_loss"}
    assert sorted(trainer.grids) == [0, 5, 10, 12]
    with Image.open(run / "samples-000012.png") as picture:
        assert np.array_equal(255 - np.asarray(picture), module._tiled(trainer.grids[12]))
    assert np.array_equal(module._untiled(module._tiled(trainer.grids[12])), trainer.grids[12])
    assert not np.array_equal(trainer.grids[12], trainer.grids[0])


@pytest.mark.parametrize(
    "changed",
    [{"kind": "ls"}, {"kind": "vanilla"}, {"batch_size": 5}, {"generator_lr": 1e-5}, {"discriminator_lr": 1e-5},
     {"average": 0.5}, {"seed": 1}, {"noise_dim": 7}, {"steps": 4}],
    ids=str,
)  # fmt: skip
def test_every_option_changes_the_result(images, few_steps, changed):
    assert not torch.equal(few_steps, trained(images, **{"steps": 3} | changed).sample(3))


@pytest.fixture(scope="module")
def few_steps(images):
    return trained(images, steps=3).sample(3)


def test_without_a_folder_nothing_is_written_and_the_global_generator_is_left_alone(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    trained(images)
    assert torch.equal(state, torch.get_rng_state()) and not list(tmp_path.iterdir())


def test_what_is_thought_of_images():
    class Reader(torch.nn.Module):
        def forward(self, x):
            scores = torch.zeros(len(x), 10)
            scores[:, 3] = math.log(9 * 4)  # four fifths of the probability
            return scores

    found = judge(torch.rand(700, 1, 28, 28), Reader())
    assert found.classes == (0, 0, 0, 700, 0, 0, 0, 0, 0, 0) and found.count == 700
    assert abs(found.confidence - 0.8) < 1e-5
    with complains(ValueError, "judge", "'images'", "(N, 1, 28, 28)", "(2, 28, 28)"):
        judge(torch.rand(2, 28, 28), Reader())


# ---- stopping and going on -------------------------------------------------------------------------------------------


class Cut(Exception):
    """A run that ends as by kill -9."""


@pytest.mark.parametrize("kind", module.KINDS)
def test_a_run_that_was_cut_ends_the_same(images, tmp_path, kind):
    trained(images, tmp_path / "whole", kind=kind)

    def cut(record):
        if record["step"] == 10:
            raise Cut

    run = tmp_path / "run"
    with pytest.raises(Cut):
        GANTrainer(images, GANConfig(**SMALL, kind=kind), out=run, callback=cut).train()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "discri')
    assert content(run)[".step"] == 8
    trainer = GANTrainer.resume(run, images)
    assert trainer.step == 8 and sorted(trainer.grids) == [0, 5]
    assert trainer.train().steps == 4
    assert_same_run(run, tmp_path / "whole")


def test_lengthened(images, tmp_path):
    trained(images, tmp_path / "whole", save_every=50)
    trained(images, tmp_path / "run", steps=7, save_every=50)
    assert GANTrainer.resume(tmp_path / "run", images).train().steps == 0
    trainer = GANTrainer.resume(tmp_path / "run", images, steps=12, save_every=50)
    trainer.train()
    found, expected = content(tmp_path / "run"), content(tmp_path / "whole")
    assert [name for name in found if found[name] != expected[name]] == []


@posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_save_first(images, tmp_path, name):
    signum = getattr(signal, name)
    trained(images, tmp_path / "whole", kind="vanilla")

    def press(record):
        if record["step"] == 7:
            signal.raise_signal(signum)

    before = signal.getsignal(signum)
    with common.sigterm_heeded():
        with pytest.raises(KeyboardInterrupt) as caught:
            GANTrainer(images, GANConfig(**SMALL, kind="vanilla"), out=tmp_path / "run", callback=press).train()
    assert common.code_of(caught.value) == {"SIGINT": 130, "SIGTERM": 143}[name]
    assert signal.getsignal(signum) is before
    assert content(tmp_path / "run")[".step"] == 7
    GANTrainer.resume(tmp_path / "run", images).train()
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The words of a small run, and that run without a break."""
    base = tmp_path_factory.mktemp("command")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 28, 28), dtype=np.uint8)
    (base / "images").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, *pixels.shape) + pixels.tobytes())
    words = ["--data", str(base / "images"), "--kind", "ls", "--steps", "150", "--save-every", "40",
             "--batch-size", "8", "--out", str(base / "picture.png")]  # fmt: skip
    result = CliRunner().invoke(app, ["gan", str(base / "whole"), *words])
    assert result.exit_code == 0, result.output
    return base, words


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -9), ("SIGINT", 130)], ids=["kill -9", "Ctrl-C"])
def test_a_stopped_command_goes_on(command, tmp_path, name, code):
    base, words = command
    run = tmp_path / "run"
    stop_at = int(np.random.default_rng().integers(2 if code > 0 else 6, 13))  # lines of the log, another each time
    process = subprocess.Popen(
        [sys.executable, "-m", "fastrnn", "gan", str(run), *words[:-1], str(tmp_path / "none.png")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_text().count("generator_loss") >= stop_at:
            break
        time.sleep(0.001)
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, (stop_at, errors)
    assert not (tmp_path / "none.png").exists()
    stopped = content(run)[".step"]
    assert 0 < stopped < 150, stop_at
    if code > 0:
        (line,) = [line for line in errors.splitlines() if line.startswith("fastrnn:")]
        assert line == f"fastrnn: stopped after step {stopped} of 150; go on with: fastrnn gan {run} --resume"
        assert "Traceback" not in errors
    else:
        assert stopped % 40 == 0
    result = CliRunner().invoke(app, ["gan", str(run), "--resume", "--out", str(tmp_path / "picture.png")])
    assert result.exit_code == 0, result.output
    assert f"from step {stopped} of 150" in result.output
    assert_same_run(run, base / "whole")
    # The same picture too: grids and losses from before the stop are in it.
    assert (tmp_path / "picture.png").read_bytes() == (base / "picture.png").read_bytes()


def test_what_the_command_says(tmp_path, monkeypatch):
    """On the embedded digits, with a classifier that is quickly trained."""
    from fastrnn.vision import networks

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(networks, "digits_classifier", lambda progress: networks.DigitsNet())
    result = CliRunner().invoke(app, ["gan", "--steps", "20", "--batch-size", "4"])
    assert result.exit_code == 0, result.output
    said = result.output
    assert "1,797 images: the handwritten digits of scikit-learn" in said
    assert "20 steps of 4 in" in said and "step 2 of 20" in said
    assert "sure of 1,000 samples on average" in said and "of the 10 digits: 0:" in said
    assert f"picture  {tmp_path / 'fastrnn-gan.png'}" in said
    assert [path.name for path in tmp_path.iterdir()] == ["fastrnn-gan.png"]
    with Image.open("fastrnn-gan.png") as picture:
        assert picture.size == (1690, 1092) and len(picture.getcolors(1 << 24)) > 100


def test_own_images_plain_and_compressed(command, tmp_path, monkeypatch):
    base, _ = command
    plain = base / "images"
    (tmp_path / "again.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert torch.equal(load_images([plain, tmp_path / "again.gz"]), load_images([plain]).repeat(2, 1, 1, 1))
    assert load_images().shape == (1797, 1, 28, 28)
    words = ["gan", "--data", str(plain), "--data", "again.gz", "--steps", "2", "--kind", "vanilla"]
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*words, "--sample-every", "1", "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert "100 images" in result.output and "judgement" not in result.output


def test_steps_that_are_drawn():
    assert gan_pictures.chosen_steps([0, 150, 300, 450, 600]) == [150, 300, 600]
    assert gan_pictures.chosen_steps([0]) == [0]
    assert gan_pictures.chosen_steps([0, 1]) == [1]


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kind": "wgan"}, ValueError, ("'kind'", "'dc'", "'wgan'")),
        ({"steps": 0}, ValueError, ("'steps'", "at least 1", "0")),
        ({"steps": 1.5}, TypeError, ("'steps'", "whole number", "float")),
        ({"batch_size": 1}, ValueError, ("'batch_size'", "at least 2", "1")),
        ({"generator_lr": 0}, ValueError, ("'generator_lr'", "greater than 0", "0")),
        ({"discriminator_lr": math.inf}, ValueError, ("'discriminator_lr'", "inf")),
        ({"average": 1}, ValueError, ("'average'", "less than 1", "1")),
        ({"average": "0.9"}, TypeError, ("'average'",)),
        ({"noise_dim": 0}, ValueError, ("'noise_dim'", "0")),
        ({"sample_every": 0}, ValueError, ("'sample_every'", "0")),
        ({"seed": -1}, ValueError, ("'seed'", "-1")),
    ],
    ids=str,
)
def test_bad_options(options, error, words):
    with complains(error, "GANConfig", *words):
        GANConfig(**options)


def test_bad_images(images):
    for value, error, words in (
        (images[:, 0], ValueError, ("(N, 1, 28, 28)", "(40, 28, 28)")),
        (images[:0], ValueError, ("at least 1", "(0, 1, 28, 28)")),
        (images.numpy(), TypeError, ("Tensor", "ndarray")),
        (images.byte(), TypeError, ("floating", "uint8")),
        (images * 255, ValueError, ("between 0 and 1", "values from")),
        (images * float("nan"), ValueError, ("between 0 and 1", "nan")),
    ):
        with complains(error, "GANTrainer", "'images'", *words):
            GANTrainer(value)
    with complains(TypeError, "GANTrainer", "'config'", "dict"):
        GANTrainer(images, {})


def spoiled(change):
    def spoil(path):
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return spoil


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """One bit of a parameter."""
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 4
    path.write_bytes(whole)


def shape_of_another(state):
    state["networks"]["generator"]["0.weight"] = torch.zeros(1024, 95)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_in_half, ("half-written",)),
        (flip, ("damaged",)),
        (lambda path: path.write_bytes(b""), ("0 bytes",)),
        (lambda path: path.write_text("no checkpoint"), ("of another kind",)),
        (lambda path: torch.save(torch.zeros(3), path), ("another file of PyTorch",)),
        (spoiled(lambda state: state.update(version=99)), ("version 1", "99")),
        (spoiled(lambda state: state.update(step="3")), ("'step'", "int", "str")),
        (spoiled(lambda state: state["data"].pop("crc32")), ("'data.crc32'", "NoneType")),
        (spoiled(lambda state: state["networks"].pop("average")), ("'networks.average'", "none")),
        (spoiled(lambda state: state["networks"]["generator"].pop("0.bias")), ("'networks.generator.0.bias'",)),
        (spoiled(shape_of_another), ("'networks.generator.0.weight'", "(1024, 96)", "(1024, 95)")),
        (spoiled(lambda state: state["networks"]["average"].update(x=torch.zeros(1))), ("'networks.average.x'",)),
        (spoiled(lambda state: state["optimizers"]["generator"].pop(0)), ("'optimizers.generator.0'",)),
        (spoiled(lambda state: state["optimizers"]["discriminator"][1].pop("exp_avg")),
         ("'optimizers.discriminator.1.exp_avg'", "(256,)")),
        (spoiled(lambda state: state["config"].update(depth=3)), ("depth", "another release")),
        (spoiled(lambda state: state["config"].update(kind="dc")), ("networks.generator",)),
        (spoiled(lambda state: state["config"].update(steps=-1)), ("'steps'", "-1")),
    ],
)  # fmt: skip
def test_bad_checkpoints(images, good, tmp_path, spoil, words):
    path = tmp_path / "last.pt"
    path.write_bytes(good)
    spoil(path)
    with complains(ValueError, "GANTrainer.resume", str(path), *words):
        GANTrainer.resume(tmp_path, images)


@pytest.fixture(scope="module")
def good(images, tmp_path_factory):
    """The bytes of a checkpoint."""
    run = tmp_path_factory.mktemp("good")
    trained(images, run, kind="vanilla", steps=2)
    return (run / "last.pt").read_bytes()


def test_what_may_not_be_gone_on_with(images, good, tmp_path):
    (tmp_path / "last.pt").write_bytes(good)
    with complains(FileNotFoundError, "GANTrainer.resume", "nothing"):
        GANTrainer.resume(tmp_path / "nowhere", images)
    with complains(ValueError, "GANTrainer.resume", "40 images", "39 others"):
        GANTrainer.resume(tmp_path, images[:39])
    with complains(ValueError, "GANTrainer.resume", "40 images"):
        GANTrainer.resume(tmp_path, images.flip(0))
    with complains(ValueError, "GANTrainer.resume", "'batch_size'", "must stay 4", "got 5"):
        GANTrainer.resume(tmp_path, images, batch_size=5)
    with complains(TypeError, "GANTrainer.resume", "'depth'"):
        GANTrainer.resume(tmp_path, images, depth=5)
    with complains(FileExistsError, "GANTrainer", "--resume"):
        GANTrainer(images, GANConfig(**SMALL), out=tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == good


def test_a_lost_picture_is_no_reason_to_stop(images, tmp_path):
    trained(images, tmp_path, kind="ls")
    (tmp_path / "samples-000005.png").write_bytes(b"no picture")
    (tmp_path / "samples-000010.png").unlink()
    assert sorted(GANTrainer.resume(tmp_path, images).grids) == [0, 12]


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(images, tmp_path):
    trainer = GANTrainer(images, GANConfig(**SMALL, kind="ls", discriminator_lr=1e30), out=tmp_path)
    with complains(FloatingPointError, "GANTrainer.train", "after step", "learning rates", "1e+30"):
        trainer.train()
    trainer = trained(images, tmp_path / "run", kind="ls", steps=2)
    before = (tmp_path / "run" / "last.pt").read_bytes()
    with torch.no_grad():
        trainer.generator[0].bias[0] = math.nan
    with complains(FloatingPointError, "GANTrainer.train", "0.bias of the generator", "last good checkpoint"):
        trainer.save()
    assert (tmp_path / "run" / "last.pt").read_bytes() == before


@pytest.mark.parametrize("fails", ["write", "fsync", "replace"])
def test_a_failed_save_leaves_the_old_checkpoint(images, tmp_path, monkeypatch, fails):
    trainer = trained(images, tmp_path, kind="ls", steps=2)
    names, before = sorted(tmp_path.iterdir()), (tmp_path / "last.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    if fails == "write":
        monkeypatch.setattr(runs, "open", lambda *args: FullFile(open(*args)), raising=False)
    else:
        monkeypatch.setattr(os, fails, full)
    with complains(OSError, "GANTrainer", str(tmp_path / "last.pt"), "No space left", "untouched", "make room"):
        trainer.save()
    monkeypatch.undo()
    assert (tmp_path / "last.pt").read_bytes() == before and sorted(tmp_path.iterdir()) == names


def test_a_full_disk(command, tmp_path):
    """A file system of its own that fills up while a run is on it."""
    base, words = command
    with tiny_disk(tmp_path / "disk", 100 * 2**20) as disk:
        run, out = disk / "run", ["--out", str(tmp_path / "picture.png")]
        result = CliRunner().invoke(app, ["gan", str(run), *words, *out, "--steps", "4"])
        assert result.exit_code == 0, result.output
        before = content(run)
        filler = fill(disk, but=65536)
        result = CliRunner().invoke(app, ["gan", str(run), *out, "--resume", "--steps", "25"])
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.splitlines()
        assert str(run) in line and "No space left on device" in line and "make room" in line
        assert content(run) == before and not list(run.glob("*.part"))
        filler.unlink()
        result = CliRunner().invoke(app, ["gan", str(run), *out, "--resume", "--steps", "25"])
        assert result.exit_code == 0, result.output
        CliRunner().invoke(app, ["gan", str(tmp_path / "whole"), *words, *out, "--steps", "25"])
        found, expected = content(run), content(tmp_path / "whole")
        assert [name for name in found if found[name] != expected[name]] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--kind wgan", "unknown kind 'wgan'; there are dc, ls, vanilla"),
        ("--data nowhere", "nowhere"),
        ("--data file", "IDX"),
        ("--data half.gz", "half.gz"),
        ("--data labels", "(N, 28, 28)"),
        ("--data IMAGES --data nowhere", "nowhere"),
        ("--steps 0", "--steps"),
        ("--batch-size 1", "--batch-size"),
        ("--seed -1", "--seed"),
        ("--device tpu", "unknown device 'tpu'"),
        ("--device cuda", "no CUDA device"),
        ("--out picture.txt", "picture.txt"),
        ("--out nowhere/picture.png", "no folder"),
        ("--resume", "fastrnn gan RUN --resume"),
        ("file", "it is a file"),
        ("file/run --kind ls", "file/run"),
        ("there", "there: expected a folder without a run"),
        ("there --resume --batch-size 9", "'batch_size' must stay 8"),
        ("there --resume --data labels", "(N, 28, 28)"),
        ("half --resume", "half-written"),
    ],
)
def test_bad_input_on_the_command_line(command, tmp_path, monkeypatch, words, said):
    base, _ = command
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no digits at all")
    Path("half.gz").write_bytes(gzip.compress((base / "images").read_bytes())[:2000])
    Path("labels").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 50) + bytes(50))
    Path("there").symlink_to(base / "whole")
    Path("half").mkdir()
    Path("half/last.pt").write_bytes((base / "whole" / "last.pt").read_bytes()[:5000])
    before = sorted(os.listdir()), sorted(os.listdir("half")), sorted(os.listdir("there"))
    result = CliRunner().invoke(app, ["gan", *words.replace("IMAGES", str(base / "images")).split()])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastrnn: ") and said in line, line
    assert "Traceback" not in result.output and "Errno" not in line
    assert before == (sorted(os.listdir()), sorted(os.listdir("half")), sorted(os.listdir("there")))


def test_the_default_of_every_kind_is_in_the_help():
    said = " ".join(CliRunner().invoke(app, ["gan", "--help"]).output.split())
    assert list(module.KINDS) == ["vanilla", "ls", "dc"]
    assert {kind.steps for name, kind in module.KINDS.items() if name != "dc"} == {4000}
    assert f"Default: {module.KINDS['dc'].steps:,} (dc), 4,000 (ls, vanilla)" in said
    assert f"Default: {module.KINDS['dc'].batch_size} (dc), {module.KINDS['ls'].batch_size} (ls, vanilla)" in said
