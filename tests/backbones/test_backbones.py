"""The backbones are the papers' networks: sizes, strides, places of GE, initial values."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from geexp import add_gather_excite, build_model, register_timm_models
from geexp.backbones import block_outputs, blocks, stages
from geexp.backbones.shufflenet import channel_shuffle
from geexp.operators import VARIANTS, Excite
from geexp.registry import options

NETWORKS = {name: entry for name, entry in options("model").items() if name != "timm"}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet110", 1_727_962),
        ("resnet164", 1_703_258),
        ("wrn16_8", 10_961_370),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_known_sizes(name, count):
    with torch.device("meta"):
        assert parameters(build_model(name)) == count


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_preactivation_networks_are_the_papers(shortcut):
    """Written straight from He et al. 2016: "Identity Mappings", appendix; "Deep Residual Learning", section 4.2."""
    torch.manual_seed(0)
    model = build_model("resnet20", shortcut=shortcut).double().eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(values, 0.5, 1.5)
    state = model.state_dict()

    def activated(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    def convolved(x, name, stride=1):
        weight = state[f"{name}.weight"]
        return nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    x = convolved(images, "conv1")
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            a = activated(x, f"{name}.bn1")
            branch = convolved(a, f"{name}.branch.0", stride)
            branch = convolved(activated(branch, f"{name}.branch.1"), f"{name}.branch.3")
            if block > 0:  # the sum itself goes on
                x = x + branch
            elif stage == 1:  # the first activation comes before the split into two paths
                x = a + branch
            elif shortcut == "B":
                x = convolved(a, f"{name}.projection", 2) + branch
            else:
                x = branch
                x[:, : a.shape[1]] += a[:, :, ::2, ::2]
    features = activated(x, "bn").mean((2, 3))
    torch.testing.assert_close(model(images), features @ state["fc.weight"].T + state["fc.bias"])


# The deep networks are made of the blocks of the others.
DEEP = ("resnet101", "resnet152", "resnet110", "resnet164")


@pytest.mark.parametrize(
    ("name", "ge"), [(n, ge) for n in NETWORKS for ge in ("none", *VARIANTS) if n not in DEEP or ge == "theta_plus"]
)
def test_every_parameter_learns(name, ge):
    """For every network: forward, backward, a gradient for every parameter."""
    torch.manual_seed(0)
    size = 64 if NETWORKS[name]["home_size"] == 224 else 16
    model = build_model(name, ge=ge, num_classes=5, image_size=size)
    logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("source", [timm.create_model, torchvision.models.get_model])
def test_resnet_v15_is_timms_and_torchvisions(source):
    theirs = source("resnet50", num_classes=10).eval()
    ours = build_model("resnet50", num_classes=10, stride_in="3x3").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_resnet_v1_has_its_stride_on_the_first_1x1():
    for stage, sequence in stages(build_model("resnet50")).items():
        strides = (2, 2) if stage > 2 else (1, 1)
        assert sequence[0].conv1.stride == strides
        assert sequence[0].conv2.stride == (1, 1)
        assert all(block.conv1.stride == block.conv2.stride == (1, 1) for block in sequence[1:])


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in DEEP])
def test_ge_is_the_last_thing_before_the_sum(name):
    """With the gate closed, a block with an identity shortcut is that shortcut, and its ReLU if it ends in one."""

    class Closed(nn.Module):
        def forward(self, x):
            return x * 0

    model = build_model(name, ge="theta_minus").eval()
    post_activation = hasattr(model, "maxpool")
    for sequence in stages(model).values():
        for block in list(sequence)[1:2]:
            setattr(block, "ge" if hasattr(block, "ge") else "se", Closed())
            channels = next(m for m in block.modules() if isinstance(m, nn.Conv2d)).in_channels
            x = torch.randn(1, channels, 4, 4)
            torch.testing.assert_close(block(x), x.relu() if post_activation else x)


def test_shufflenet_puts_ge_on_the_full_width_after_the_concatenation():
    model = build_model("shufflenet_g3", ge="se")
    widths = {name: block.ge.channels for name, block in blocks(model).items()}
    assert widths["conv2_1"] == widths["conv2_2"] == 240
    assert widths["conv3_1"] == 480
    assert widths["conv4_1"] == widths["conv4_4"] == 960
    assert len(widths) == 16
    assert model.layer1[0].conv1.groups == 1
    assert model.layer1[1].conv1.groups == model.layer2[0].conv1.groups == 3


def test_global_gathers_have_the_size_of_their_maps():
    model = build_model("resnet50", ge="theta")
    sizes = {stage: sequence[0].se.gather[0].kernel_size for stage, sequence in stages(model).items()}
    assert sizes == {2: (56, 56), 3: (28, 28), 4: (14, 14), 5: (7, 7)}
    model = build_model("resnet20", ge="theta", image_size=(28, 20), in_channels=1)
    assert [sequence[0].ge.gather[0].kernel_size for sequence in stages(model).values()] == [(28, 20), (14, 10), (7, 5)]
    model = add_gather_excite(timm.create_model("resnet18", num_classes=4), variant="theta")  # as timm configured it
    assert model.layer1[0].se.gather[0].kernel_size == (56, 56)


def test_block_outputs_by_the_papers_names():
    model = build_model("resnet50", ge="theta_minus", num_classes=10).eval()
    assert list(blocks(model))[:4] == ["conv2_1", "conv2_2", "conv2_3", "conv3_1"]
    x = torch.randn(1, 3, 64, 64)
    outputs = block_outputs(model, x, ["conv4_6", "conv5_1"])
    assert {name: tuple(out.shape) for name, out in outputs.items()} == {
        "conv4_6": (1, 1024, 4, 4),
        "conv5_1": (1, 2048, 2, 2),
    }
    assert (outputs["conv4_6"] >= 0).all()
    torch.testing.assert_close(
        block_outputs(model, x)["conv5_3"].mean((2, 3)) @ model.fc.weight.T + model.fc.bias, model(x)
    )
    with pytest.raises(ValueError, match=r"no block 'conv4_7'.*conv4_6"):
        block_outputs(model, x, ["conv4_7"])
    assert not any(block._forward_hooks for block in blocks(model).values())


def test_initialisation_is_the_definitions():
    torch.manual_seed(0)
    model = build_model("resnet50", ge="theta_plus")
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == 0.05
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()
        elif isinstance(module, nn.Conv2d) and "transform" not in name and module.weight.numel() > 4000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.06), name
        elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and "transform" in name):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.06), name
            assert module.bias.eq(0).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_channels_are_shuffled_in_their_own_memory_format(memory_format):
    x = torch.randn(2, 12, 5, 4).to(memory_format=memory_format).requires_grad_()
    y = channel_shuffle(x, 3)
    assert torch.equal(y, nn.ChannelShuffle(3)(x))
    assert y.is_contiguous(memory_format=memory_format)
    y.backward(y.detach())  # which is shuffled back
    assert torch.equal(x.grad, x)
    assert x.grad.is_contiguous(memory_format=memory_format)


def test_switches_of_the_initialisation():
    torch.manual_seed(0)
    assert build_model("resnet20", bn_momentum=0.1).bn.momentum == 0.1
    model = build_model("resnet20", init="torch")
    assert model.fc.weight.std().item() == pytest.approx((1 / 64 / 3) ** 0.5, rel=0.15)
    for name in ("resnet50", "resnet20", "shufflenet_g3"):
        x = torch.randn(1, 3, 32, 32)
        outputs = block_outputs(build_model(name, zero_init_residual=True).eval(), x, ["conv2_2", "conv2_3"])
        torch.testing.assert_close(outputs["conv2_2"], outputs["conv2_3"])


@pytest.mark.parametrize(
    ("network", "stages", "message"),
    [
        ("seresnet50", None, "conv2_1 already has a SEModule"),
        ("hrnet_w18_small", None, "only networks of the ResNet family"),  # which has a layer1
        ("resnet18", [6], r"stages=\[6\].*2, 3, 4, 5"),
        ("resnet18", [], r"stages=\[\]"),
    ],
)
def test_add_gather_excite_refuses(network, stages, message):
    with pytest.raises(ValueError, match=message):
        add_gather_excite(timm.create_model(network), variant="theta", stages=stages)


def test_timm_registration():
    assert register_timm_models() == register_timm_models()
    model = timm.create_model("ge_resnet50", num_classes=7, ge="theta_plus", extent=4, in_chans=1)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    assert any(isinstance(m, Excite) for m in model.modules())
    assert "ge_wrn16_8" in timm.list_models("ge_*")
    with pytest.raises(ValueError, match="no pretrained weights"):
        timm.create_model("ge_resnet20", pretrained=True)
    with pytest.raises(ValueError, match=r"ge_resnet20: drop_rate=0\.5"):
        timm.create_model("ge_resnet20", drop_rate=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet49"}, "resnet49.*resnet50"),
        ({"name": "resnet20", "stride_in": "1x1"}, "not an option of resnet20"),
        ({"name": "resnet50", "stride_in": "2x2"}, "'1x1' and '3x3'"),
        ({"name": "resnet50", "shortcut": "A"}, "not an option of resnet50, only of .*resnet110"),
        ({"name": "resnet20", "shortcut": "C"}, "'A' and 'B'"),
        ({"name": "resnet20", "init": "xavier"}, "'paper', 'torch'"),
        ({"name": "resnet20", "ge": "theta", "stages": [5]}, "stages 2, 3, 4"),
    ],
)
def test_build_model_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(**arguments)


def test_zero_initialised_residuals_learn():
    """Zeros that are concatenated would stay zero behind the ReLU."""
    torch.manual_seed(0)
    for name in ("shufflenet_g3", "resnet20"):
        model = build_model(name, zero_init_residual=True, num_classes=4)
        sgd = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            sgd.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.randint(0, 4, (8,))).backward()
            sgd.step()
        for block in blocks(model).values():
            first = next(m for m in block.modules() if isinstance(m, nn.Conv2d))
            assert first.weight.grad.abs().sum() > 0


def test_adding_ge_leaves_modes_and_other_stages_alone():
    model = build_model("resnet20", ge="theta", stages=[2]).train()
    model.bn.eval()  # frozen, as in detection
    add_gather_excite(model, variant="theta_minus", extent=4, stages=[3], image_size=32)
    assert model.training
    assert not model.bn.training
    assert [model.layer1[0].ge.variant, model.layer2[0].ge.variant] == ["theta", "theta_minus"]
    assert isinstance(model.layer3[0].ge, nn.Identity)


def test_block_outputs_of_a_compiled_model():
    model = build_model("resnet8", ge="theta_minus").eval()
    x = torch.randn(1, 3, 16, 16)
    want = block_outputs(model, x)
    model.compile(backend="eager")
    model(x)
    got = block_outputs(model, x)
    assert got.keys() == want.keys() == blocks(model).keys()
    torch.testing.assert_close(got["conv4_1"], want["conv4_1"])


@pytest.mark.parametrize("name", ["ge_resnet50", "ge_resnet20"])
def test_timms_handling_of_classifiers(name):
    register_timm_models()
    model = timm.create_model(name, num_classes=7, drop_rate=0.0, drop_path_rate=0.0, global_pool="avg", img_size=64)
    x = torch.randn(2, 3, 64, 64)
    assert model.num_classes == model.get_classifier().out_features == 7
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    assert timm.create_model(name, num_classes=0, img_size=64)(x).shape == (2, model.num_features)


def test_timms_data_config_is_the_home_of_the_backbone():
    register_timm_models()
    config = timm.data.resolve_model_data_config(timm.create_model("ge_resnet20", in_chans=1))
    assert (config["input_size"], config["crop_pct"], len(config["mean"])) == ((1, 32, 32), 1.0, 1)
    model = timm.create_model("ge_resnet50", ge="se", pretrained_cfg_overlay={"crop_pct": 0.9})
    assert timm.data.resolve_model_data_config(model)["crop_pct"] == 0.9
