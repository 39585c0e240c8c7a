"""Statistics of each process must survive a stop within an epoch, and be the same on all processes after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed, nn

from seresnet_hub.training import processes
from seresnet_hub.training import train as training
from seresnet_hub.training.batchnorm_statistics import RunningStatistics


class Process:
    """What is asked of Accelerate, for process `rank` of as many as have `vectors`."""

    def __init__(self, rank: int, vectors: list[torch.Tensor]) -> None:
        self.process_index, self.num_processes, self._vectors = rank, len(vectors), vectors

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        assert torch.equal(own[0], self._vectors[self.process_index])
        return torch.stack(self._vectors)


def model_with(value: float) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(2)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(value)
            module.running_var.fill_(value + 10)
    return model


def vector(value: float) -> torch.Tensor:
    return torch.tensor([value] * 4 + [value + 10] * 4 + [value] * 2 + [value + 10] * 2)


def of(rank: int, values: list[float], **models: nn.Module) -> RunningStatistics:
    process: Any = Process(rank, [vector(value) for value in values])
    return RunningStatistics(models, process)


def test_each_of_as_many_processes_gets_its_own_back() -> None:
    values = [1.0, 5.0, 6.0]
    gathered = of(1, values, model=model_with(5.0), average=model_with(5.0)).gathered()
    assert {name: rows.shape for name, rows in gathered.items()} == {"model": (3, 12), "average": (3, 12)}
    for rank, value in enumerate(values):
        fresh = model_with(0.0)
        statistics = of(rank, values, model=fresh, average=model_with(0.0))
        statistics.load(gathered)
        for name, tensor in model_with(value).named_buffers():
            assert torch.equal(fresh.get_buffer(name), tensor), name


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0]])
def test_another_number_of_processes_takes_the_mean(values: list[float]) -> None:
    gathered = of(1, [1.0, 5.0, 6.0], model=model_with(5.0)).gathered()
    fresh = model_with(0.0)
    of(0, values, model=fresh).load(gathered)
    assert torch.equal(fresh[1].running_mean, torch.full((4,), 4.0))
    assert torch.equal(fresh[2][0].running_var, torch.full((2,), 14.0))


def test_what_is_not_there_changes_nothing_and_what_does_not_fit_is_an_error() -> None:
    fresh = model_with(3.0)
    of(0, [3.0, 4.0], model=fresh).load({})  # a state of an older version
    assert torch.equal(fresh[1].running_mean, torch.full((4,), 3.0))
    with pytest.raises(RuntimeError, match="split"):
        of(0, [3.0, 4.0], model=fresh).load({"model": torch.zeros(2, 5)})
    assert of(0, [3.0], model=fresh).gathered() == {}
    assert of(0, [3.0, 4.0], model=nn.Linear(2, 2)).gathered() == {}


def test_sharing_takes_the_mean_of_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor, op: tensor.add_(4))
    model, average = model_with(2.0), model_with(6.0)
    of(0, [2.0, 4.0], model=model, average=average).share()
    assert torch.equal(model[1].running_mean, torch.full((4,), 3.0))
    assert torch.equal(average[1].running_mean, torch.full((4,), 5.0))


def test_processes_send_no_buffers_and_copy_no_gradients(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    class Noted(Exception):
        pass

    def accelerator(*, kwargs_handlers: list[Any], **_: Any) -> Any:
        raise Noted(kwargs_handlers)

    monkeypatch.setattr(processes, "Accelerator", accelerator)
    with pytest.raises(Noted) as noted:
        training.train(training.Recipe(**SETTINGS), output=tmp_path / "run")
    (options,) = [handler.to_kwargs() for handler in noted.value.args[0] if hasattr(handler, "broadcast_buffers")]
    assert options == {"broadcast_buffers": False, "gradient_as_bucket_view": True}


SETTINGS: dict[str, Any] = {
    "name": "small", "model": "seresnet20_cifar", "data": "digits", "epochs": 1, "batch_size": 8, "learning_rate": 0.1,
    "weight_decay": 0.0, "crop": "pad", "input_size": 8,
}  # fmt: skip
