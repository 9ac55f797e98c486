"""prune-channels: what goes is the least needed, counts and goals are met, the rest is refitted, nothing else changes."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from hasten import check
from hasten.data.source import Arrays
from hasten.doors import load
from hasten.errors import BadInput, Refused
from hasten.facts import facts
from hasten.metrics import METRICS
from hasten.passes.fold_constants import FoldConstants, fold_constants
from hasten.shrink.groups import couple
from hasten.shrink.importance import IMPORTANCES, importance, see, strongest
from hasten.shrink.prune_channels import PruneChannels, observe, prune_channels
from hasten.shrink.widths import LEFT_OUT, by_count, by_time, choose, space, worthwhile
from hasten.task import Split, without_data


class Residual(nn.Module):
    """A stem, two residual blocks with batch norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1), nn.BatchNorm2d(16)
            )
            for _ in range(2)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(3)
    return fold_constants(load(Residual().eval(), example_inputs=torch.randn(2, 3, 8, 8)).model, FoldConstants(), None)


def samples(model, count=96, seed=0):
    """Inputs of low rank, as real ones are: channels can then stand in for each other."""
    rng = np.random.default_rng(seed)
    shape = (3, 8, 8)
    basis = rng.standard_normal((6, *shape))
    x = np.einsum("nk,kchw->nchw", rng.standard_normal((count, 6)), basis).astype(np.float32) / 2
    split = Split(Arrays({model.inputs[0].name: x}), None, np.arange(count))
    metric = next(m for m in METRICS if m.name == "mse")
    return dataclasses.replace(without_data(), calibrate=split, validate=split, test=split, metric=metric, output=model.outputs[0].name)


def outputs(model, task):
    return np.concatenate([check.oracle(model).run(None, f)[0] for f in task.test.batches(96)])


def error(model, made, task):
    whole = outputs(model, task)
    return float(np.square(outputs(made, task) - whole).sum() / np.square(whole - whole.mean(0)).sum())


@pytest.mark.parametrize("goal", [{"keep_macs": 0.6}, {"keep_params": 0.5}, {"keep_macs": 0.6, "scope": "layer"}])
def test_the_goal_is_met_and_the_rest_refitted(residual, goal):
    task = samples(residual)
    settings = PruneChannels(**goal, blocks=False, multiple=1)
    seen = observe(residual, settings, task)
    made = prune_channels(residual, settings, dataclasses.replace(task, observation=seen))
    before, after = facts(residual), facts(made)
    share = after.macs / before.macs if "keep_macs" in goal else after.parameters / before.parameters
    assert share <= settings.share + 0.01
    assert share > settings.share * 0.7
    plain = prune_channels(
        residual, dataclasses.replace(settings, repair=False), dataclasses.replace(task, observation=seen | {"data": None})
    )
    assert error(residual, made, task) < 0.3 * error(residual, plain, task)
    assert made.history[-1].name == "prune_channels"
    again = prune_channels(residual, settings, dataclasses.replace(task, observation=seen))
    assert again.digest == made.digest


def test_what_a_layer_reads_in_vain_goes_first_and_nothing_changes(residual):
    """Channels whose readers are zero: any criterion with data finds them, and the outputs stay."""
    torch.manual_seed(4)
    module = Residual().eval()
    with torch.no_grad():
        module.blocks[0][3].weight[:, ::2] = 0
        module.blocks[1][3].weight[:, 1::2] = 0
    model = load(module, example_inputs=torch.randn(2, 3, 8, 8)).model
    task = samples(model)
    for name in ("activation", "reconstruction", "taylor"):
        coupled = couple(model)
        scores = importance(name, see(coupled, task, 64))
        inner = [g for g in coupled.groups if g.channels == 24]
        assert [strongest(scores[g.name], 12).tolist() for g in inner] == [list(range(1, 24, 2)), list(range(0, 24, 2))], name
    settings = PruneChannels(keep_macs=0.55, blocks=False, multiple=12, leave=("node_conv2d",), importance="taylor", repair=False)
    made = prune_channels(model, settings, task)
    assert sorted(len(k) for k in observe(model, settings, task)["kept"].values()) == [12, 12]
    check.same(model, made, check.FLOAT32)


def test_every_importance_gives_a_number_for_each_channel(residual):
    task = samples(residual)
    coupled = couple(residual)
    for name in IMPORTANCES:
        scores = importance(name, see(coupled, task, 32, seed=1))
        assert {g.name: len(scores[g.name]) for g in coupled.groups} == {g.name: g.channels for g in coupled.groups}
        assert all(not np.isnan(s).any() and (len(set(s.tolist())) > 1 or name == "batch_norm") for s in scores.values()), name


def test_batch_norm_scales_are_an_importance(residual):
    coupled = couple(residual)
    group = next(g for g in coupled.groups if g.channels == 24)
    torch.manual_seed(0)
    module = Residual().eval()
    with torch.no_grad():
        for number, block in enumerate(module.blocks):
            block[1].weight[:] = torch.arange(24).roll(number) + 1.0
    model = load(module, example_inputs=torch.randn(2, 3, 8, 8)).model
    scores = importance("batch_norm", see(couple(model), None, 1))
    assert np.argmax(scores[group.name]) == 23


def test_a_block_without_effect_is_left_out(residual):
    torch.manual_seed(4)
    module = Residual().eval()
    with torch.no_grad():
        module.blocks[0][4].weight[:] = 0
        module.blocks[0][4].bias[:] = 0
    model = load(module, example_inputs=torch.randn(2, 3, 8, 8)).model
    task = samples(model)
    settings = PruneChannels(keep_macs=0.58, repair=False)
    seen = observe(model, settings, task)
    assert len(seen["left_out"]) == 1
    assert seen["kept"] == {}
    made = prune_channels(model, settings, dataclasses.replace(task, observation=seen))
    check.same(model, made, check.FLOAT32)
    assert len(list(made.ir.graph)) < len(list(model.ir.graph))


def test_it_replays_without_data_where_nothing_was_repaired(residual):
    settings = PruneChannels(keep_macs=0.5, repair=False)
    seen = observe(residual, settings, None)
    one = prune_channels(residual, settings, dataclasses.replace(without_data(), observation=seen))
    assert one.digest == prune_channels(residual, settings, None).digest
    task = samples(residual)
    repaired = observe(residual, PruneChannels(keep_macs=0.5), task)
    for other, said in ((without_data(), "and none came"), (samples(residual, seed=1), r"and others came \(\w+\)")):
        with pytest.raises(
            Refused, match=rf"prune-channels: the plan was made with calibration samples \(digest \w+\), {said}; give the same --data"
        ):
            prune_channels(residual, PruneChannels(keep_macs=0.5), dataclasses.replace(other, observation=repaired))


def test_what_was_seen_for_one_scope_serves_no_other(residual):
    """Blocks are units of the global scope alone, whichever is asked for first."""
    task = samples(residual)
    for scope in ("layer", "global", "layer"):
        assert observe(residual, PruneChannels(keep_macs=0.6, scope=scope, samples=48), task)["kept"]


@pytest.mark.parametrize("criterion", ["auto", "magnitude", "taylor"])
def test_data_that_gives_no_numbers_and_too_little_data_are_refused(residual, criterion):
    task = samples(residual)
    broken = Arrays({name: np.full_like(x, np.nan) for name, x in task.calibrate.samples.take(np.arange(96)).items()})
    nan = dataclasses.replace(task, calibrate=dataclasses.replace(task.calibrate, samples=broken))
    with pytest.raises(
        Refused, match=r"prune-channels: tensor .* has values that are not finite on the calibration data; look at the data"
    ):
        observe(residual, PruneChannels(importance=criterion, samples=40), nan)
    fixed = load(residual, shapes={residual.inputs[0].shape[0]: 128}).model
    with pytest.raises(Refused, match="the calibration data has fewer samples than one batch of the model: 96 of 128; give more data"):
        observe(fixed, PruneChannels(importance=criterion), samples(fixed))


def test_a_layer_of_one_output_is_refitted_too():
    torch.manual_seed(6)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 1, 3))
    model = load(net.eval(), example_inputs=torch.randn(2, 3, 8, 8)).model
    task, settings = samples(model), PruneChannels(keep_macs=0.6)
    seen = observe(model, settings, task)
    made, plain = (prune_channels(model, settings, dataclasses.replace(task, observation=seen | more)) for more in ({}, {"data": None}))
    assert error(model, made, task) < error(model, plain, task)


def test_measured_times_decide_which_widths_are_worth_it():
    assert worthwhile((16, 12, 8, 4), {12: 1.1, 8: 0.6, 4: 0.595}, 0.02) == (16, 8)
    assert worthwhile((16, 8), {8: 1.0}, 0.02) == (16,)


def test_prices_in_time_give_back_what_was_measured(residual):
    found = space(couple(residual), couple(residual).groups, 0, True)
    assert {u.options for u in found.units if u.block} == {(1, LEFT_OUT)}
    measured = {u.name: {o: 0.9 - 0.1 * i for i, o in enumerate(u.options[1:])} for u in found.units}
    prices = by_time(found, measured)
    widest = {u.name: u.options[0] for u in found.units}
    for unit in found.units:
        for option, ratio in measured[unit.name].items():
            reached = prices.cost(widest | {unit.name: option})
            assert reached == pytest.approx(ratio, abs=1e-3) or prices.lost[unit.name][option] > 0.999


def test_macs_are_what_facts_count(residual):
    coupled = couple(residual)
    found = space(coupled, coupled.groups, 8, False)
    prices = by_count(found, found.macs, found.total_macs)
    settings = PruneChannels(keep_macs=0.4, blocks=False, multiple=8, repair=False)
    made = prune_channels(residual, settings, None)
    kept = observe(residual, settings, None)["kept"]
    choice = {u.name: len(kept.get(u.name, range(u.options[0]))) for u in found.units}
    assert prices.cost(choice) == pytest.approx(facts(made).macs / facts(residual).macs, abs=1e-6)


def test_the_choice_is_as_good_as_trying_all(residual):
    coupled = couple(residual)
    found = space(coupled, coupled.groups, 8, True)
    prices = by_count(found, found.macs, found.total_macs)
    rng = np.random.default_rng(0)
    options = {u.name: u.options for u in found.units}
    every = [{}]
    for unit in found.units:
        every = [c | {unit.name: o} for c in every for o in unit.options]
    for budget in (0.8, 0.6, 0.4):
        harm = {u.name: dict(zip(u.options, [0, *np.cumsum(rng.random(len(u.options) - 1))], strict=True)) for u in found.units}

        def total(choice, harm=harm):
            out = {i for u in found.units if u.block and choice[u.name] == LEFT_OUT for i in u.inside}
            inside = [u.name for u in found.units if u.group and {a // 2 for a in u.on} <= out]
            return sum(h[choice[n]] for n, h in harm.items() if n not in inside)

        best = min(total(c) for c in every if prices.cost(c) <= budget)
        choice = choose(found, options, harm, prices, budget)
        assert prices.cost(choice) <= budget
        assert total(choice) <= 1.1 * best + 1e-9


@pytest.mark.parametrize("settings, said", [
    ({"keep_macs": 0.5, "speedup": 2.0}, "wants one goal, and keep-macs 0.5 and speedup 2 came"),
    ({"keep_macs": 1.5}, "keep_macs is 1.5, expected a share above 0 and below 1"),
    ({"speedup": 0.9}, "speedup is 0.9, expected a number above 1"),
    ({"importance": "size"}, "importance 'size' is unknown; use one of auto, magnitude"),
    ({"scope": "net"}, "scope 'net' is unknown; use one of global, layer"),
    ({"multiple": -1}, "multiple is -1, expected at least 0"),
])  # fmt: skip
def test_bad_settings(settings, said):
    with pytest.raises(BadInput, match=said):
        PruneChannels(**settings)


def test_what_cannot_be_met_is_refused(residual):
    with pytest.raises(Refused, match=r"0\.001 of the MACs were asked for, and no width leaves less than 0\.\d+; ask for more"):
        prune_channels(residual, PruneChannels(keep_macs=0.001), None)
    with pytest.raises(Refused, match="importance taylor needs data, and none came; give --data, or --importance magnitude"):
        prune_channels(residual, PruneChannels(importance="taylor"), None)
    with pytest.raises(BadInput, match=r"'nowhere' can't lose channels: the model has no such layer or group; those that can: "):
        prune_channels(residual, PruneChannels(only=("nowhere",)), None)
    with pytest.raises(BadInput, match=r"'node_linear' can't lose channels: .* stays as wide as it is: it reaches the model's output"):
        prune_channels(residual, PruneChannels(only=("node_linear",)), None)
    lone = load(nn.Linear(4, 3).eval(), example_inputs=torch.randn(2, 4)).model
    with pytest.raises(Refused, match="no channels of this model can be removed"):
        prune_channels(lone, PruneChannels(), None)


def test_speedup_is_measured_and_corrected(residual, monkeypatch):
    """The clock is made up: widths that are no multiple of 8 take as long as the next larger one."""
    from hasten.shrink import prune_channels as module

    def clock(original, models, runtime, target, feeds, rounds=1):
        def cost(model):
            weights = [v.const_value.shape for v in model.ir.graph.initializers.values() if len(v.const_value.shape) > 1]
            return sum(-(-rows // 8) * -(-columns // 8) * np.prod(kernel) for rows, columns, *kernel in weights)

        return [cost(m) / cost(original) for m in models]

    monkeypatch.setattr(module, "ratios_beside", clock)
    task = samples(residual)
    settings = PruneChannels(speedup=1.6, multiple=4, blocks=False)
    seen = observe(residual, settings, task)
    assert all(len(k) % 8 == 0 for k in seen["kept"].values())
    assert any("are not faster than more" in note for note in seen["notes"])
    made = prune_channels(residual, settings, dataclasses.replace(task, observation=seen))
    assert clock(residual, [made], "", None, None)[0] <= 1 / 1.55
    with pytest.raises(Refused, match="× 1000 was asked for, and the narrowest widths that were tried reached × "):
        observe(residual, dataclasses.replace(settings, speedup=1000.0), task)
