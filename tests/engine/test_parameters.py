"""Rules of parameter groups: which weight gets which rate, against optimisers that were made by hand."""

import pytest
import torch
from torch import nn

from dml.engine.parameters import hold_back, make_optimizer
from dml.engine.rules import Rule
from dml.engine.schedule import warmup_cosine


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedder = nn.ModuleDict(
            {"backbone": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "head": nn.Linear(4, 2)}
        )
        self.loss = nn.ParameterDict({"proxies": nn.Parameter(torch.randn(5, 2))})
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x):
        return (self.embedder["head"](self.embedder["backbone"](x)) @ self.loss["proxies"].T).square().mean()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def settings(net, optimizer):
    """name -> (lr, weight decay) of every weight that learns."""
    names = {weight: name for name, weight in net.named_parameters()}
    return {
        names[weight]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }


def adamw(groups):
    return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5)


def test_without_rules_there_is_one_group_in_the_order_of_the_weights(net):
    optimizer = make_optimizer(adamw, net.named_parameters())
    assert len(optimizer.param_groups) == 1
    learning = [weight for weight in net.parameters() if weight.requires_grad]
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], learning, strict=True))


def test_the_last_rule_that_names_a_value_decides_it(net):
    # Caffe's rates: the head ten times, biases twice that, and no decay of biases.
    rules = [Rule("embedder.head", lr=10), Rule("*.bias", lr=2, weight_decay=0), Rule("embedder.head.bias", lr=20)]
    found = settings(net, make_optimizer(adamw, net.named_parameters(), rules))
    assert found == {
        "embedder.backbone.0.weight": (0.1, 0.5),
        "embedder.backbone.0.bias": (pytest.approx(0.2), 0),
        "embedder.backbone.1.weight": (0.1, 0.5),
        "embedder.backbone.1.bias": (pytest.approx(0.2), 0),
        "embedder.head.weight": (pytest.approx(1.0), 0.5),
        "embedder.head.bias": (pytest.approx(2.0), 0),
        "loss.proxies": (0.1, 0.5),
    }


def test_norms_and_biases_are_the_weights_of_one_dimension(net):
    found = settings(net, make_optimizer(adamw, net.named_parameters(), [Rule("norms_and_biases", weight_decay=0)]))
    assert {name for name, (_, decay) in found.items() if decay == 0} == {
        name for name, weight in net.named_parameters() if weight.ndim == 1 and weight.requires_grad
    }


def test_a_name_is_no_beginning_of_a_longer_word(net):
    with pytest.raises(ValueError, match=r"optimizer\.groups\.0\.of=embedder\.he fits no weight: names begin with "):
        make_optimizer(adamw, net.named_parameters(), [Rule("embedder.he", lr=10)])


def test_rules_that_fit_nothing_that_learns_are_refused(net):
    with pytest.raises(ValueError, match=r"optimizer\.groups\.1\.of=frozen fits only weights that are frozen"):
        make_optimizer(adamw, net.named_parameters(), [Rule("loss", lr=10), Rule("frozen", lr=2)])


def test_scales_multiply_the_rules(net):
    scales = {"embedder.backbone.0.weight": 0.25, "embedder.backbone.1.weight": 0.5}
    found = settings(net, make_optimizer(adamw, net.named_parameters(), [Rule("embedder.backbone", lr=2)], scales))
    assert found["embedder.backbone.0.weight"][0] == pytest.approx(0.05)
    assert found["embedder.backbone.1.weight"][0] == pytest.approx(0.1)
    assert found["embedder.head.weight"][0] == pytest.approx(0.1)


def test_a_schedule_keeps_the_proportions(net):
    optimizer = make_optimizer(adamw, net.named_parameters(), [Rule("embedder.head", lr=10)])
    schedule = warmup_cosine(optimizer, steps=10, warmup=0.3)
    for _ in range(10):
        plain, head = (group["lr"] for group in optimizer.param_groups)
        assert head == pytest.approx(10 * plain)
        optimizer.step()
        schedule.step()


def test_held_back_weights_stay_and_their_state_begins_with_their_first_step(net):
    x = torch.randn(8, 3)
    optimizer = make_optimizer(adamw, net.named_parameters(), [Rule("embedder.backbone", from_step=3)])
    kept = net.embedder["backbone"][0].weight.detach().clone()
    for step in range(5):
        optimizer.zero_grad()
        net(x).backward()
        hold_back(optimizer, step)
        optimizer.step()
        same = torch.equal(kept, net.embedder["backbone"][0].weight)
        assert same == (step < 3)
    steps = {int(optimizer.state[weight]["step"]) for weight in net.embedder["backbone"].parameters()}
    assert steps == {2} and int(optimizer.state[net.embedder["head"].weight]["step"]) == 5
