"""AdamW and accumulated gradients against steps made by hand, and which parameters decay."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Batch

from mfpyg import backbones
from mfpyg import settings as s
from mfpyg.datasets import MiniCHNO
from mfpyg.errors import MFPyGError
from mfpyg.fidelity import Fidelity
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.models.build import build_potential
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.module import MultiFidelityModule
from mfpyg.training.optimizer import adam, decaying

from .conftest import stage_of

LR = 1e-2


@pytest.mark.parametrize("backbone", backbones.names())
def test_weight_matrices_and_embeddings_decay_and_nothing_else(backbone: str) -> None:
    values = s.defaults("small", backbone)
    values["head"]["kind"] = "nonlinear"
    model = build_potential(s.from_dict(values), [1, 6, 7, 8], ["dz", "cc"])
    ids = {id(parameter) for parameter in decaying(model)}
    decay = {name: id(parameter) in ids for name, parameter in model.named_parameters()}
    spared = ("bias", "mu", "sigma", "tensor_scales.0", "tensor_scales.1", "freq", "norm.weight")
    assert decay == {name: not name.endswith(spared) for name in decay}
    assert not any(id(buffer) in ids for buffer in model.buffers()), "reference energies"


def potential() -> MultiFidelityPotential:
    torch.manual_seed(0)
    model = MultiFidelityPotential(HIPNN([1, 6, 7, 8], 2, 1, 8, 6), ["dz", "cc"]).double()
    for head in model.heads:
        head.reference.copy_(torch.tensor([-370.0, -23880.0, -34340.0, -47090.0]))
    return model


def loss() -> MultiFidelityLoss:
    columns = {name: MiniCHNO().fidelities.index(name) for name in ("dz", "cc")}
    weights = {("dz", "energy"): 1.0, ("dz", "forces"): 1.0, ("cc", "energy"): 0.5}
    return MultiFidelityLoss([Fidelity("dz", "EF"), Fidelity("cc")], columns, weights, 1.0)


def some_batches(n: int) -> list[Batch]:
    return [Batch.from_data_list([MiniCHNO()[3 * number + i] for i in range(3)]) for number in range(n)]


def trained(module: MultiFidelityModule, batches: list[Batch], accumulate: int = 1) -> MultiFidelityPotential:
    """The potential of a module after an epoch of the trainer."""
    trainer = lightning.Trainer(
        accelerator="cpu", precision="64-true", max_epochs=1, accumulate_grad_batches=accumulate, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert isinstance(module.potential, MultiFidelityPotential)
    return module.potential


def backward(model: MultiFidelityPotential, batch: Batch) -> None:
    of = loss()
    of(of.predict(model, batch), batch)[0].backward()


def assert_same(one: MultiFidelityPotential, two: MultiFidelityPotential) -> None:
    begin = potential().state_dict()
    for name, parameter in two.named_parameters():
        torch.testing.assert_close(one.get_parameter(name), parameter, rtol=1e-9, atol=1e-11)
        assert not torch.equal(parameter, begin[name])


def test_steps_are_those_of_adamw_by_hand() -> None:
    batches, decay = some_batches(4), 0.7
    model = potential()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    by_hand = [
        torch.optim.AdamW(matrices, lr=LR, weight_decay=decay),
        torch.optim.AdamW(others, lr=LR, weight_decay=0.0),
    ]
    for batch in batches:
        model.zero_grad()
        backward(model, batch)
        for optimizer in by_hand:
            optimizer.step()
    assert_same(trained(MultiFidelityModule(potential(), stage_of(loss(), LR, decay)), batches), model)


def test_accumulated_batches_make_the_step_of_their_averaged_gradients() -> None:
    """Of five batches two, two, and the last one of the epoch, whose gradient is not halved."""
    batches = some_batches(5)
    model = potential()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for window in (batches[:2], batches[2:4], batches[4:]):
        model.zero_grad()
        for batch in window:
            backward(model, batch)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad /= len(window)
        optimizer.step()
    assert_same(
        trained(
            MultiFidelityModule(potential(), stage_of(loss(), LR), optim=s.OptimSettings(accumulate=2)),
            batches,
            accumulate=2,
        ),
        model,
    )


def test_gradient_of_a_short_window_is_clipped_as_any_other() -> None:
    seen: list[float] = []

    class Seen(MultiFidelityModule):
        def configure_gradient_clipping(self, optimizer: Any, *more: Any, **others: Any) -> None:
            norms = [p.grad.norm() for p in self.potential.parameters() if p.grad is not None]
            seen.append(float(torch.stack(norms).norm()))

    for accumulate in (1, 3):
        optim = s.OptimSettings(accumulate=accumulate)
        trained(Seen(potential(), stage_of(loss(), LR), optim=optim), some_batches(1), accumulate)
    assert seen[1] == pytest.approx(seen[0], rel=1e-12)


def test_without_decay_it_is_adam() -> None:
    model = potential()
    optimizer = adam(model, model.parameters(), LR)
    assert type(optimizer) is torch.optim.Adam
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(list(model.parameters()))]


def test_state_of_another_decay_is_refused() -> None:
    one, two = (adam(model, model.parameters(), LR, 0.1) for model in (potential(), potential()))
    two.load_state_dict(one.state_dict())
    state = one.state_dict()
    state["param_groups"][0]["weight_decay"] = 0.2
    with pytest.raises(MFPyGError, match="its weight_decay"):
        two.load_state_dict(state)
