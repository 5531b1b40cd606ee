"""What a checkpoint holds of an optimiser is checked before it is taken."""

import copy

import pytest
import torch

from agents.core.structure import load_optimizer, require_like


def stepped(fused: bool = True) -> torch.optim.Adam:
    layer = torch.nn.Conv2d(3, 4, 2)
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-3, fused=fused)
    layer(torch.rand(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    return optimizer


def test_an_optimiser_goes_on_as_it_would_have():
    first, second = stepped(), stepped()
    load_optimizer(second, copy.deepcopy(first.state_dict()))
    for one, other in zip(first.state.values(), second.state.values(), strict=True):
        for name, value in one.items():
            assert torch.equal(value, other[name])
            assert value.stride() == other[name].stride()


def test_before_the_first_step_there_are_no_moments():
    fresh = torch.optim.Adam(torch.nn.Linear(2, 2).parameters())
    load_optimizer(fresh, fresh.state_dict())
    assert not fresh.state


CHANGES = [
    (lambda s: s["param_groups"][0].update(params=[0]), r"groups of \[2\] parameters, got \[1\]"),
    (lambda s: s["param_groups"][0].update(params=[0, 0]), "expected different integers"),
    (lambda s: s["param_groups"][0].update(params=[0, "1"]), "expected different integers"),
    (lambda s: s["param_groups"].append({"params": []}), r"groups of \[2\] .*got \[2, 0\]"),
    (lambda s: s["state"][0].pop("exp_avg"), "moments of parameter 0: expected keys"),
    (lambda s: s["state"][0].update(step=1), "expected float32"),
    (lambda s: s["state"][0].update(exp_avg=torch.zeros(4)), r"\(4, 3, 2, 2\), got .*\(4,\)"),
    (lambda s: s["state"].update({7: s["state"][0]}), "moments of parameter 7, which no group"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_what_is_none_of_adams_is_refused_and_changes_nothing(change, message):
    optimizer = stepped()
    before = copy.deepcopy(optimizer.state_dict())
    state = copy.deepcopy(before)
    change(state)
    with pytest.raises((ValueError, KeyError), match=message):
        load_optimizer(optimizer, state)
    require_like(optimizer.state_dict()["state"], before["state"], "moments")
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]


def test_settings_are_this_sides():
    optimizer, state = stepped(fused=False), copy.deepcopy(stepped(fused=True).state_dict())
    state["param_groups"][0].update(lr="fast", betas=(0.9,))
    load_optimizer(optimizer, state)
    assert optimizer.param_groups[0]["fused"] is False
    assert optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("value", "like", "message"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, r"x: expected keys \['a', 'b'\], got keys \['a'\]"),
        ([1, 2], {"a": 1}, r"x: expected keys \['a'\], got \[1, 2\]"),
        ({"a": {"b": 2.0}}, {"a": {"b": 2}}, r"x\['a'\]\['b'\]: expected an integer, got 2.0"),
        (True, 1, "x: expected an integer, got True"),
        (None, torch.zeros(3), r"x: expected float32 \(3,\), got None"),
        (torch.zeros(2), torch.zeros(3), r"x: expected float32 \(3,\), got float32 \(2,\)"),
    ],
)
def test_differences_are_named(value, like, message):
    require_like(like, like, "x")
    with pytest.raises(ValueError, match=message):
        require_like(value, like, "x")
