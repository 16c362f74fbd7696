"""training.compile: the same numbers, or one warning and the model as it is."""

import functools
import itertools
from pathlib import Path

import pytest
import torch
from scripts import copy_of_the_project, make_mini_project, mini, run

from models.hoser import HOSER
from utils.config import load_config
from utils.data.dataset import load_city
from utils.data.loader import make_loaders
from utils.runtime.precision import Precision
from utils.training.compile import compile_model
from utils.training.losses import HOSERLoss

ONE_LAYER = "trajectory_encoder_config.num_layers=1"  # each is compiled on its own


def test_a_compiled_model_gives_the_same_losses_gradients_and_state_dict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its graphs are captured as ever, and then run by PyTorch: generating code for them takes a minute."""
    import torch._dynamo

    make_mini_project(tmp_path)
    config = load_config("Mini", tmp_path / "Mini.yaml", [ONE_LAYER])
    city = load_city("Mini", config, tmp_path / "data" / "Mini")
    loader = make_loaders(city, config, "cpu")["train"]
    loss_function = HOSERLoss(loader.statistics)
    plain = HOSER(config, city.features)
    compiled = HOSER(config, city.features)
    compiled.load_state_dict(plain.state_dict())
    compile = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr("utils.training.compile.torch.compile", compile)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_model(compiled, loader, Precision(config.training.precision, loader.device))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3  # navigator, MLP, attention
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for batch in itertools.islice(loader.shuffled(0, 0), 3):
        ours, theirs = (loss_function(model(batch), batch)["loss"] for model in (compiled, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        ours.backward()
        theirs.backward()
    for (name, a), b in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_without_a_compiler_the_model_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    import torch._inductor.config

    make_mini_project(tmp_path)
    config = load_config("Mini", tmp_path / "Mini.yaml", [ONE_LAYER])
    city = load_city("Mini", config, tmp_path / "data" / "Mini")
    loader = make_loaders(city, config, "cpu")["train"]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/nonexistent"))
    torch._dynamo.reset()
    model = HOSER(config, city.features)
    before = [set(vars(module)) for module in model.modules()]
    compile_model(model, loader, Precision(config.training.precision, loader.device))
    [message] = messages
    assert message.startswith("training.compile: torch.compile fails here (")
    assert [set(vars(module)) for module in model.modules()] == before  # no method is another one


def test_training_goes_on_without_a_compiler_as_without_the_switch(project: Path) -> None:
    code = copy_of_the_project(project / "code")
    with (code / "utils" / "training" / "compile.py").open("a") as file:
        file.write("\ndef _compile(*_, **__):\n    raise RuntimeError('no compiler here')\ntorch.compile = _compile\n")
    models = []
    for switch in ("true", "false"):
        script, *arguments = mini("train.py", "--set", "optimizer_config.max_epoch=1", "--seed", "1", "--cuda", "-1")
        done = run([str(code / script), *arguments, "--set", f"training.compile={switch}"], project)
        assert done.returncode == 0, done.stderr
        told = done.stderr.count("training.compile: torch.compile fails here (no compiler here)")
        assert told == (switch == "true")
        models.append((project / "save" / "Mini" / "seed1" / "best.pth").read_bytes())
    assert models[0] == models[1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiling_is_tried_in_the_precision_of_training(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    """A compiler that fails on half precision only is found out before the first step, with gradients and without."""
    make_mini_project(tmp_path)
    config = load_config("Mini", tmp_path / "Mini.yaml")
    city = load_city("Mini", config, tmp_path / "data" / "Mini")
    loader = make_loaders(city, config, "cpu")["train"]
    seen = set()

    def compile(function, dynamic: bool):
        def compiled(*arguments):
            seen.add(torch.is_grad_enabled())
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("no half precision here")
            return function(*arguments)

        return compiled

    monkeypatch.setattr("utils.training.compile.torch.compile", compile)
    model = HOSER(config, city.features)
    compile_model(model, loader, Precision(precision, loader.device))
    told = [message for message in messages if "no half precision here" in message]
    assert len(told) == (precision == "bfloat16")
    assert seen == ({True} if told else {True, False})
    assert ("forward" in vars(model.navigator)) is (precision == "float32")
    assert all(parameter.grad is None for parameter in model.parameters())
