"""What a batch has no label of does not move: neither weights, nor the optimiser's memory of them."""

from __future__ import annotations

import copy
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Batch, Data

from mfpyg.fidelity import Fidelity
from mfpyg.models import HIPNN, MultiFidelityPotential
from mfpyg.training.loss import MultiFidelityLoss
from mfpyg.training.module import MultiFidelityModule
from mfpyg.training.optimizer import skip_unlabelled
from mfpyg.training.stage import train_only

from .conftest import stage_of

LEVELS = {"dz": Fidelity("dz", "EF"), "cc": Fidelity("cc"), "tz": Fidelity("tz")}
NAMES = tuple(LEVELS)


def batch_of(labelled: str, seed: int) -> Batch:
    """Three molecules with labels of some fidelities, as in ``"dz cc"``."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[name in labelled.split() for name in NAMES]])
    items = []
    for n in (2, 3, 4):
        energy = torch.randn(1, 3, dtype=torch.float64, generator=generator)
        forces = torch.randn(n, 3, 3, generator=generator)
        energy[~mask], forces[:, ~mask[0]] = torch.nan, torch.nan
        pos = torch.eye(4, 3)[:n] + 0.1 * torch.randn(n, 3, generator=generator)
        z = torch.tensor([8, 1, 6, 7])[:n]
        items.append(Data(z=z, pos=pos, energy=energy, energy_mask=mask, forces=forces, forces_mask=mask))
    return Batch.from_data_list(items)


def potential(private_blocks: int = 0) -> MultiFidelityPotential:
    torch.manual_seed(0)
    backbone = HIPNN([1, 6, 7, 8], n_interactions=2, n_atom_layers=1, n_features=6, n_sensitivities=5)
    return MultiFidelityPotential(backbone, NAMES, private_blocks=private_blocks)


class Watched(MultiFidelityModule):
    """Remembers all weights, and the optimiser's moments, after each step; with weight decay, where wanted."""

    def __init__(self, model: MultiFidelityPotential, trained: tuple[str, ...] = NAMES, decay: float = 0.0) -> None:
        weights = {(n, p.name): 1.0 for n in trained for p in LEVELS[n].properties}
        columns = {name: number for number, name in enumerate(NAMES)}
        loss = MultiFidelityLoss([LEVELS[n] for n in trained], columns, weights, hierarchicality=1.0)
        super().__init__(model, stage_of(loss, 1e-2, decay))
        self.history = [self.state()]

    def state(self, optimizer: Any = None) -> dict[str, list[Tensor]]:
        moments = {} if optimizer is None else optimizer.state
        return {
            name: [copy.deepcopy(t.detach()) for t in (p, *moments.get(p, {}).values())]
            for name, p in self.potential.named_parameters()
        }

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.history.append(self.state(self.trainer.optimizers[0]))


def train(module: Watched, batches: list[Batch], clip: float | None = None, accumulate: int = 1) -> None:
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, gradient_clip_val=clip, accumulate_grad_batches=accumulate, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]


def owners(model: MultiFidelityPotential) -> dict[str, str]:
    """The fidelity that each parameter belongs to; ``shared`` for the backbone's."""
    own = {id(p): name for name in NAMES for p in model.parts_of([name]).parameters()}
    return {name: own.get(id(p), "shared") for name, p in model.named_parameters()}


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(map(torch.equal, one, two))


SEQUENCE = ["dz cc tz", "dz", "dz cc", "", "tz", "cc", "", "dz", "dz", "cc tz"]


@pytest.mark.parametrize("private_blocks", [0, 1])
@pytest.mark.parametrize(("decay", "clip"), [(0.0, None), (0.1, 0.5)])
def test_only_what_has_labels_moves(private_blocks: int, decay: float, clip: float | None) -> None:
    module = Watched(potential(private_blocks), decay=decay)
    train(module, [batch_of(labelled, seed) for seed, labelled in enumerate(SEQUENCE)], clip)
    owner = owners(module.potential)
    assert set(owner.values()) == {"shared", *NAMES}
    assert len(module.history) == len(SEQUENCE) + 1
    for labelled, before, after in zip(SEQUENCE, module.history, module.history[1:], strict=False):
        there = {*labelled.split(), *(["shared"] if labelled else [])}
        moved = {owner[name] for name in owner if not torch.equal(before[name][0], after[name][0])}
        assert moved == there, labelled
        for name in owner:
            assert same(before[name], after[name]) == (owner[name] not in there), (labelled, name)


def test_what_any_batch_of_a_step_has_labels_of_moves() -> None:
    module = Watched(potential(), decay=0.1)
    train(module, [batch_of(labelled, seed) for seed, labelled in enumerate(["dz", "cc", "", "", "tz", ""])], None, 2)
    owner = owners(module.potential)
    for number, there in enumerate([set(), {"shared", "dz", "cc"}, set(), set(), set(), {"shared", "tz"}]):
        before, after = module.history[number], module.history[number + 1]
        assert {owner[name] for name in owner if not same(before[name], after[name])} == there, number


def test_a_fidelity_that_is_not_trained_keeps_its_weights_bit_for_bit() -> None:
    model = potential(private_blocks=1)
    train_only(model, [*model.backbone.parameters(), *model.parts_of(["dz", "cc"]).parameters()])
    module = Watched(model, ("dz", "cc"), decay=0.1)
    train(module, [batch_of("dz cc tz", seed) for seed in range(5)])
    for name, of in owners(model).items():
        moved = not torch.equal(module.history[0][name][0], module.history[-1][name][0])
        assert moved == (of != "tz"), name


def test_gradient_that_is_left_out_has_no_part_in_clipping() -> None:
    """Large gradients on a head without labels, as a regulariser of one's own might leave them."""

    class Regularised(Watched):
        def training_step(self, batch: Batch, batch_number: int) -> Tensor:
            loss = super().training_step(batch, batch_number)
            return loss + sum(1e6 * p.sum() for p in self.potential.parts_of(["cc"]).parameters())

    one, two = Watched(potential()), Regularised(potential())
    for module in (one, two):
        train(module, [batch_of("dz", 3)], clip=0.1)
    for name, values in one.history[-1].items():
        assert same(values, two.history[-1][name]), name


def test_labels_on_any_process_count() -> None:
    """The counts that decide are those of the loss, which are summed over all processes."""
    model = potential()
    loss = Watched(model).loss
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    sums = torch.zeros(len(loss.weights), 3, dtype=torch.float64)
    sums[[prop == "forces" for _, prop in loss.weights], 0] = 3.0  # forces of dz alone, wherever they are
    assert loss.labelled(sums) == {(name, "energy"): name == "dz" for name in ("dz", "cc", "tz")}
    skip_unlabelled(model, loss.labelled(sums))
    assert {of for (name, of) in owners(model).items() if model.get_parameter(name).grad is None} == {"cc", "tz"}
